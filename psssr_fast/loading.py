"""From a checkpoint to networks that are ready to run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from psssr_fast.attention import Problem, select_attention
from psssr_fast.checkpoint import Checkpoint, load_checkpoint
from psssr_fast.errors import ModelError, UsageError
from psssr_fast.models.codec import NanoCodec, WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import CodecSize, ModelSize, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.pipeline import Networks
from psssr_fast.runtime.cpu import fastest_dtype

Network = TypeVar("Network", bound=nn.Module)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
        networks: ready to run.
        size: its dimensions and default windows.
        name: what to call it in reports.
        attention: the backend that runs.
    """

    networks: Networks
    size: ModelSize
    name: str
    attention: str


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the first CUDA device, else the CPU.

    Raises:
        UsageError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UsageError(f"no such device: {device!r}; use 'auto', 'cpu' or 'cuda:0'") from None
    if resolved.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is not supported; use 'auto', 'cpu' or 'cuda:0'")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {str(device)!r} is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use 'cpu', or see `psssr doctor`"
        )
    return resolved


def load_networks(
    source: str | Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    attention: str = "auto",
    *,
    offline: bool = False,
    revision: str | None = None,
) -> Loaded:
    """Load a checkpoint and build its networks.

    Args:
        source: ``"nano"``, a directory, or a hub repository.
        device: where to run.
        dtype: default bf16 on CUDA, and on a CPU bf16 or fp32, whichever is faster there.
        attention: a backend's name, or ``"auto"``.
        offline: never touch the network.
        revision: of the hub repository.

    Raises:
        ModelError: the checkpoint cannot be used.
        UsageError: the attention backend cannot run.
    """
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else fastest_dtype())
    checkpoint = load_checkpoint(source, offline=offline, revision=revision)
    size = checkpoint.size.dit
    problem = Problem(device, dtype, size.dim // size.heads, size.attention_window is not None)
    name, function, windows = select_attention(problem, attention)
    with torch.device("meta"):  # no memory: the checkpoint's tensors take the parameters' place
        base = Dit(size, attention=function, windows=windows)
        draft = Dit(size, draft=True, attention=function, windows=windows)
        codec = _empty_codec(checkpoint.size.codec)
    filled = _filled(codec, checkpoint.codec, device, dtype)
    if isinstance(filled, NanoCodec):  # 2-D convolutions run faster with channels last
        filled.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = Networks(
        base=_filled(base, checkpoint.base, device, dtype),
        draft=_filled(draft, checkpoint.draft, device, dtype),
        codec=WanCodec(filled) if isinstance(filled, WanVae) else filled,
        context=_context(checkpoint, device, dtype),
    )
    logger.info("%s on %s in %s, attention: %s", checkpoint.size.name, device, dtype, name)
    return Loaded(networks, checkpoint.size, checkpoint.size.name, name)


def _filled(
    network: Network, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Network:
    network.load_state_dict(weights, assign=True)
    return network.to(device, dtype).eval().requires_grad_(False)


def _empty_codec(size: VaeSize | CodecSize) -> WanVae | NanoCodec:
    return WanVae(size) if isinstance(size, VaeSize) else NanoCodec(size)


def _context(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if not checkpoint.size.dit.text_dim:
        return None
    if checkpoint.prompt is None:
        raise ModelError(
            f"{checkpoint.source}: no prompt embedding; make one once with `psssr models "
            "encode-prompt UMT5_DIRECTORY -o MODEL_DIRECTORY/prompt.safetensors`"
        )
    return checkpoint.prompt[None].to(device, dtype)
