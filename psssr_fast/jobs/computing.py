"""The plan of a job, and what computes it: the hash of all tensors, versions, threads."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor, nn

from psssr_fast import __version__
from psssr_fast.config import Settings
from psssr_fast.errors import UsageError
from psssr_fast.jobs.input import describe_source
from psssr_fast.jobs.plan import Computing, Plan, chunk_length
from psssr_fast.native import native_available
from psssr_fast.pipeline import Networks
from psssr_fast.video import EncoderSettings, VideoInfo, is_image_output
from psssr_fast.video.encoder import settle
from psssr_fast.windows import window_starts


def weights_digest(*networks: object) -> str:
    """SHA-256 over the names, types, shapes and values of all tensors that networks hold."""
    total = hashlib.sha256()
    for index, network in enumerate(networks):
        for name, tensor in sorted(_tensors(network, str(index), set())):
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().contiguous().reshape(-1).cpu()
            total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _tensors(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors within modules and what wraps them; each once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        for inner, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{name}.{inner}", tensor
    elif hasattr(value, "__dict__"):
        for inner, item in vars(value).items():
            if isinstance(item, Tensor | nn.Module) or inner in ("vae", "module"):
                yield from _tensors(item, f"{name}.{inner}", seen)


def software() -> str:
    """Versions of what computes, and on a CPU which instructions it uses."""
    kernels = "compiled" if native_available() else "reference"
    cpu = torch.backends.cpu.get_cpu_capability()
    return f"psssr_fast {__version__}, torch {torch.__version__}, {cpu}, {kernels} kernels"


def device_kind(device: torch.device) -> str:
    """What computes: the same on another device of its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def compute_threads(device: torch.device) -> int:
    """Threads that decide how sums are divided; 0 where that is not up to them."""
    return torch.get_num_threads() if device.type == "cpu" else 0


def describe_computing(
    networks: Networks,
    settings: Settings,
    model: str,
    attention: str,
    engine: str,
    threads: int | None = None,
) -> Computing:
    """What computes, as a plan keeps it; ``threads`` where they are not those of the process."""
    return Computing(
        model=model,
        weights=weights_digest(networks.base, networks.draft, networks.codec, networks.context),
        dtype=str(networks.dtype).removeprefix("torch."),
        device=device_kind(networks.device),
        threads=compute_threads(networks.device) if threads is None else threads,
        attention=attention,
        engine=engine,
        software=software(),
        settings=settings,
    )


def make_plan(
    output: str | Path,
    source: VideoInfo,
    size: tuple[int, int],
    encoder: EncoderSettings,
    computing: Computing,
    chunk_frames: int | None = None,
) -> Plan:
    """The plan of a job. Reads the whole input once, for its hash.

    Args:
        output: where to; its suffix decides the container.
        source: the input.
        size: of the output: height, width.
        encoder: as the user wants it.
        computing: what computes the pictures.
        chunk_frames: least number of frames of a chunk.

    Raises:
        UsageError: no such encoder or pixel format; ``chunk_frames`` is less than 1.
        InputError: the input cannot be read any more.
    """
    if chunk_frames is not None and chunk_frames < 1:
        raise UsageError(f"a chunk must have at least 1 frame; got {chunk_frames}")
    height, width = size
    windows = computing.settings.windows
    images = is_image_output(output)
    if not images:
        encoder = settle(encoder, Path(output), width, height, source.frames, source)
    rate = source.average_rate if source.kind == "images" else ""
    return Plan(
        source=describe_source(source.path, rate),
        computing=computing,
        width=width,
        height=height,
        form="images" if images else Path(output).suffix.lower(),
        encoder=encoder,
        ffmpeg=f"PyAV {av.__version__}, libavcodec {av.library_versions['libavcodec']}",
        chunk_frames=1 if images else chunk_length(chunk_frames, windows),
        rows=window_starts(height, windows.height, windows.overlap_pixels),
        columns=window_starts(width, windows.width, windows.overlap_pixels),
    )
