"""The prompt: one sentence, encoded once by umT5 and kept as a small safetensors file."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from psssr_fast.errors import ModelError, UsageError
from psssr_fast.weights_files import read_tensors, read_weight_file, shown, write_weight_file

DEFAULT_PROMPT = (
    "4K Ultra-clear, Sharp, Fine Details Restored, Temporal Consistency, Natural Colors"
)
TEXT_LENGTH = 512  # tokens the transformer attends to, padding included
PROMPT_KEY = "prompt_embedding"


def encode_prompt(text: str, encoder_dir: str | Path) -> Tensor:
    """Encode a sentence as the PS-SR release does.

    The encoder sees the sentence's tokens and not the padding; the padding's rows are set to zero
    afterwards, and the transformer attends to all of them, zero rows included.

    Args:
        text: the sentence; runs of white space count as one space.
        encoder_dir: a local umT5 with its tokenizer, as Hugging Face writes them (safetensors);
            a folder that has both, or one with ``text_encoder/`` and ``tokenizer/`` in it.

    Returns:
        ``[512, text_dim]`` in the dtype of the encoder's weights, on the CPU.

    Raises:
        ModelError: the directory does not hold an encoder and a tokenizer.
        UsageError: transformers is not installed, or the sentence is longer than 512 tokens.
    """
    tokenizer, encoder = _load_encoder(Path(encoder_dir))
    tokens = tokenizer(" ".join(text.split()), return_tensors="pt").input_ids
    count = tokens.shape[1]
    if count > TEXT_LENGTH:
        raise UsageError(f"the prompt has {count} tokens; at most {TEXT_LENGTH} fit: shorten it")
    with torch.inference_mode():
        encoded = encoder(
            input_ids=F.pad(tokens, (0, TEXT_LENGTH - count), value=tokenizer.pad_token_id),
            attention_mask=(torch.arange(TEXT_LENGTH)[None] < count).long(),
        )
    return pad_prompt(encoded.last_hidden_state[0, :count].clone())


def _load_encoder(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and encoder; errors as :func:`encode_prompt` says."""
    try:
        from transformers import AutoTokenizer, UMT5EncoderModel
    except ImportError as error:
        raise UsageError(
            f"encoding a prompt needs transformers ({shown(error)});"
            " run: pip install 'psssr_fast[prompt]'"
        ) from None
    if not os.path.isdir(folder):
        raise ModelError(f"{shown(folder)}: no such directory; give the one umT5 was saved to")
    separate = os.path.isdir(folder / "text_encoder")
    encoder_path = folder / "text_encoder" if separate else folder
    tokenizer_path = folder / "tokenizer" if separate else folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, local_files_only=True)
        loaded: Any = UMT5EncoderModel.from_pretrained(
            encoder_path,
            local_files_only=True,
            use_safetensors=True,  # never a pickle
            dtype="auto",
            output_loading_info=True,
        )
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{shown(folder)}: needed a umT5 encoder with its tokenizer: {shown(first_line)}"
        ) from None
    encoder, info = loaded
    if info["missing_keys"]:  # transformers would go on with random weights
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ModelError(f"{shown(encoder_path)}: the encoder lacks {shown(missing)}")
    return tokenizer, encoder.eval()


def pad_prompt(embedding: Tensor) -> Tensor:
    """``[length, text_dim]`` with zero rows added up to ``[512, text_dim]``."""
    return F.pad(embedding, (0, 0, 0, TEXT_LENGTH - len(embedding)))


def save_prompt(
    path: str | Path, embedding: Tensor, *, text: str, encoder: str, overwrite: bool = False
) -> None:
    """Write an embedding, the sentence it encodes, and what encoded it.

    Args:
        path: ends in ``.safetensors``.
        embedding: ``[up to 512, text_dim]``.
        text: the sentence.
        encoder: name of the encoder, for whoever looks at the file later.
        overwrite: replace an existing file.

    Raises:
        UsageError: the file exists, or has another ending.
        OutputError: it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{shown(path)}: the file of a prompt must end in .safetensors")
    if os.path.exists(path) and not overwrite:
        raise UsageError(f"{shown(path)} exists; choose another name, or allow overwriting")
    metadata = {"format": "psssr_fast", "prompt": text, "encoder": encoder}
    write_weight_file(path, {PROMPT_KEY: embedding}, metadata)


def load_prompt(path: str | Path) -> Tensor:
    """Read an embedding: ``[512, text_dim]``, shorter ones filled up with zero rows.

    Raises:
        ModelError: not a safetensors file with one ``prompt_embedding`` of finite numbers.
    """
    file = read_weight_file(Path(path))
    if set(file.tensors) != {PROMPT_KEY}:
        raise ModelError(
            f"{shown(path)}: not a prompt: needed one tensor {PROMPT_KEY},"
            f" got {shown(', '.join(sorted(file.tensors)))}"
        )
    shape = file.tensors[PROMPT_KEY].shape
    if len(shape) != 2 or not 1 <= shape[0] <= TEXT_LENGTH:
        raise ModelError(
            f"{shown(path)}: {PROMPT_KEY} has shape {list(shape)};"
            f" needed [1 to {TEXT_LENGTH}, text_dim]"
        )
    return pad_prompt(dict(read_tensors(file, file.tensors))[PROMPT_KEY])
