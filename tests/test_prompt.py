"""The prompt's embedding: made by a real (tiny, random) umT5, kept in a file."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from psssr_fast.errors import ModelError, OutputError, UsageError
from psssr_fast.models.prompt import (
    DEFAULT_PROMPT,
    PROMPT_KEY,
    TEXT_LENGTH,
    encode_prompt,
    load_prompt,
    save_prompt,
)

WORDS = ["<pad>", "</s>", "<unk>", *sorted(set(DEFAULT_PROMPT.replace(",", " ,").split()))]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A umT5 of 2 layers with a tokenizer that knows the words of the default prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = tmp_path_factory.mktemp("umt5")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    UMT5EncoderModel(config).save_pretrained(folder)
    return folder


def test_the_default_prompt_is_the_releases():
    assert DEFAULT_PROMPT == (
        "4K Ultra-clear, Sharp, Fine Details Restored, Temporal Consistency, Natural Colors"
    )
    assert TEXT_LENGTH == 512


def test_a_prompt_is_encoded_and_its_padding_is_zero(encoder_dir):
    embedding = encode_prompt("Sharp Fine Details", encoder_dir)
    assert embedding.shape == (512, 16)
    assert embedding[:4].abs().amin(dim=1).gt(0).all()  # three words and the end
    assert not embedding[4:].any()


def test_two_runs_give_the_same_bits(encoder_dir):
    first, second = (encode_prompt(DEFAULT_PROMPT, encoder_dir) for _ in range(2))
    assert torch.equal(first, second)


def test_the_encoder_does_not_see_the_padding(encoder_dir):
    from transformers import AutoTokenizer, UMT5EncoderModel

    tokens = AutoTokenizer.from_pretrained(encoder_dir)("Sharp Fine", return_tensors="pt").input_ids
    with torch.inference_mode():
        alone = UMT5EncoderModel.from_pretrained(encoder_dir).eval()(tokens).last_hidden_state[0]
    embedding = encode_prompt("Sharp Fine", encoder_dir)
    torch.testing.assert_close(embedding[: len(alone)], alone)


def test_white_space_does_not_matter_and_words_do(encoder_dir):
    plain = encode_prompt("Sharp Fine", encoder_dir)
    assert torch.equal(encode_prompt("  Sharp \n\t Fine ", encoder_dir), plain)
    assert not torch.equal(encode_prompt("Fine Sharp", encoder_dir), plain)


def test_an_empty_prompt_is_its_end_token(encoder_dir):
    embedding = encode_prompt("", encoder_dir)
    assert embedding[0].any() and not embedding[1:].any()


def test_a_prompt_of_512_tokens_fits_and_one_more_does_not(encoder_dir):
    assert encode_prompt("Sharp " * 511, encoder_dir).any(dim=1).all()
    with pytest.raises(UsageError, match="the prompt has 513 tokens; at most 512 fit"):
        encode_prompt("Sharp " * 512, encoder_dir)


def test_encoder_and_tokenizer_may_lie_in_separate_folders(encoder_dir, tmp_path):
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer").mkdir()
    for path in encoder_dir.iterdir():
        folder = "tokenizer" if path.name.startswith("token") else "text_encoder"
        shutil.copyfile(path, tmp_path / folder / path.name)
    expected = encode_prompt("Sharp", encoder_dir)
    assert torch.equal(encode_prompt("Sharp", tmp_path), expected)


def remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


def cut(name: str, folder: Path) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_tensor(name: str, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (remove, "model.safetensors", "needed a umT5 encoder"),
        (remove, "config.json", "needed a umT5 encoder"),
        (remove, "tokenizer.json", "needed a umT5 encoder"),
        (cut, "model.safetensors", "needed a umT5 encoder"),
        (cut, "config.json", "needed a umT5 encoder"),
        (drop_tensor, "encoder.final_layer_norm.weight", "the encoder lacks encoder.final_layer"),
    ],
)
def test_a_damaged_encoder_is_refused_in_one_line(encoder_dir, tmp_path, damage, name, message):
    folder = tmp_path / "umt5"
    shutil.copytree(encoder_dir, folder)
    damage(name, folder)
    with pytest.raises(ModelError, match=message) as raised:
        encode_prompt("Sharp", folder)
    assert raised.value.exit_code == 4 and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_wrong_directory_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(ModelError, match=r"umT5") as raised:
        encode_prompt("Sharp", tmp_path / name)
    assert raised.value.exit_code == 4 and "\n" not in str(raised.value)


def test_without_transformers_the_extra_is_named(encoder_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'psssr_fast\[prompt\]'"):
        encode_prompt("Sharp", encoder_dir)


def test_a_saved_prompt_comes_back_with_its_sentence(tmp_path):
    path, embedding = tmp_path / "prompt.safetensors", torch.randn(512, 16, dtype=torch.bfloat16)
    save_prompt(path, embedding, text="a sentence", encoder="umt5-xxl")
    assert torch.equal(load_prompt(path), embedding)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata == {"format": "psssr_fast", "prompt": "a sentence", "encoder": "umt5-xxl"}


def test_a_shorter_embedding_is_padded_with_zeros(tmp_path):
    embedding = torch.randn(7, 16)
    save_prompt(tmp_path / "prompt.safetensors", embedding, text="", encoder="")
    loaded = load_prompt(tmp_path / "prompt.safetensors")
    assert torch.equal(loaded[:7], embedding)
    assert loaded.shape == (512, 16) and not loaded[7:].any()


def test_an_existing_file_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "prompt.safetensors"
    save_prompt(path, torch.ones(1, 4), text="", encoder="")
    with pytest.raises(UsageError, match="exists"):
        save_prompt(path, torch.zeros(1, 4), text="", encoder="")
    save_prompt(path, torch.zeros(1, 4), text="", encoder="", overwrite=True)
    assert not load_prompt(path).any()


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must end in .safetensors"):
        save_prompt(tmp_path / "prompt.bin", torch.ones(1, 4), text="", encoder="")
    with pytest.raises(OutputError, match="cannot be written"):
        save_prompt(tmp_path / "no/prompt.safetensors", torch.ones(1, 4), text="", encoder="")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.ones(2, 4)}, "needed one tensor prompt_embedding, got other"),
        ({PROMPT_KEY: torch.ones(2, 4), "other": torch.ones(1)}, "got other, prompt_embedding"),
        ({PROMPT_KEY: torch.ones(513, 4)}, r"shape \[513, 4\]; needed \[1 to 512, text_dim\]"),
        ({PROMPT_KEY: torch.ones(4)}, r"shape \[4\]"),
        ({PROMPT_KEY: torch.full((2, 4), float("nan"))}, "holds NaN or infinity"),
        ({PROMPT_KEY: torch.ones(2, 4, dtype=torch.int32)}, "prompt_embedding is I32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_no_prompt_is_refused(tmp_path, tensors, message):
    path = tmp_path / "prompt.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match=message):
        load_prompt(path)
