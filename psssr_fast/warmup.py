"""Measure once on this machine what is fastest, and remember it for every later run.

On a GPU the kernels are compiled on the way; Triton keeps what it compiles in a folder of its own.
Captured graphs cannot be kept: they are made once here to see that they can be.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from psssr_fast.benchmark import Workload, load_upscaler
from psssr_fast.config import settings_for
from psssr_fast.errors import OutputError
from psssr_fast.forecast import empty_networks, model_size
from psssr_fast.models.sizes import ModelSize
from psssr_fast.pipeline import restore_window
from psssr_fast.recovery import with_execution
from psssr_fast.runtime import cpu
from psssr_fast.runtime.choices import choices_path, machine, remember
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.tally import tally
from psssr_fast.runtime.tuning import (
    Choice,
    Convolution,
    Timer,
    choose,
    convolutions,
    device_seconds,
    use,
)
from psssr_fast.upscaler import Upscaler


@dataclass(frozen=True)
class WarmUp:
    """What :func:`warm_up` found and kept.

    Attributes:
        machine: everything that the answers hold for.
        model, size, dtype: of the window that was restored; frames, height, width.
        choices: one for each question.
        graphs: that were captured.
        seconds: it took.
        path: of the file with the answers; ``None`` if nothing is to be kept.
        kernels: folder of compiled kernels; ``None`` on a CPU.
    """

    machine: str
    model: str
    size: tuple[int, int, int]
    dtype: str
    choices: tuple[Choice, ...]
    graphs: int
    seconds: float
    path: str | None
    kernels: str | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def warm_up(workload: Workload, tell: Callable[[str], None]) -> WarmUp:
    """Measure, compile and remember.

    Args:
        workload: model, window and device; on a CPU its dtype is not used: that is measured.
        tell: called with what is being done.

    Raises:
        ModelError, UsageError, OutOfMemory: see :mod:`psssr_fast.errors`.
        OutputError: the answers cannot be written.
    """
    begin = time.perf_counter()
    on_gpu = workload.device.type == "cuda"
    choices, graphs, dtype = (_on_gpu if on_gpu else _on_cpu)(workload, tell)
    _keep(workload.device, choices)
    path = choices_path()
    return WarmUp(
        machine=machine(workload.device),
        model=workload.source,
        size=(workload.frames, workload.height, workload.width),
        dtype=str(dtype).removeprefix("torch."),
        choices=choices,
        graphs=graphs,
        seconds=time.perf_counter() - begin,
        path=None if path is None else str(path),
        kernels=_kernel_folder() if on_gpu else None,
    )


def _keep(device: torch.device, choices: tuple[Choice, ...]) -> None:
    try:
        remember(device, {choice.question: choice.answer for choice in choices})
    except OSError as error:
        raise OutputError(
            f"{choices_path()}: cannot be written: {error.strerror or error}; name another file in "
            "PSSSR_CHOICES, or set it to off"
        ) from error


def _on_cpu(
    workload: Workload, tell: Callable[[str], None]
) -> tuple[tuple[Choice, ...], int, torch.dtype]:
    tell("timing fp32 and bf16")
    dtype, spent = cpu.measure_dtypes()
    choice = Choice(cpu.QUESTION, str(dtype), spent[dtype], spent[torch.float32], len(spent))
    cpu.fastest_dtype.cache_clear()
    tell("a first window")
    workload = replace(workload, dtype=dtype)
    _restore(load_upscaler(workload, _size(workload)), workload, Execution())
    return (choice,), 0, dtype


def _on_gpu(
    workload: Workload, tell: Callable[[str], None]
) -> tuple[tuple[Choice, ...], int, torch.dtype]:
    size = _size(workload)
    tell("loading, and a first window: kernels are compiled")
    upscaler = load_upscaler(workload, size)
    _restore(upscaler, workload, Execution(graphs=False))
    found = window_convolutions(size, workload)
    tell(f"timing the ways to compute {len(found)} convolutions")
    choices = time_convolutions(found, workload.device, device_seconds)
    use({choice.question: choice.answer for choice in choices})
    tell("capturing graphs")
    if upscaler.networks.graphs is not None:
        upscaler.networks.graphs.clear()
    _restore(upscaler, workload, Execution())
    return choices, len(upscaler.networks.graphs or ()), workload.dtype


def _size(workload: Workload) -> ModelSize:
    return model_size(workload.source, offline=workload.offline)


def _restore(upscaler: Upscaler, workload: Workload, execution: Execution) -> None:
    shape = workload.frames, 3, workload.height, workload.width
    picture = torch.rand(shape, device=workload.device) * 2 - 1
    networks = with_execution(upscaler.networks, execution)
    restore_window(networks, picture, upscaler.settings, execution)


def window_convolutions(size: ModelSize, workload: Workload) -> list[Convolution]:
    """The convolutions of our own that one window takes, found on the meta device."""
    chosen = settings_for("released", size.windows)
    device = torch.device("cuda")
    networks = empty_networks(size, workload.dtype, chosen.sampling, "fused", device)
    shape = workload.frames, 3, workload.height, workload.width
    with tally() as counted:
        restore_window(networks, torch.empty(shape, device="meta"), chosen)
    return convolutions(counted.calls)


def time_convolutions(
    found: list[Convolution], device: torch.device, timer: Timer
) -> tuple[Choice, ...]:
    """The fastest way of each."""
    from psssr_fast.kernels._launch import architecture

    arch = architecture(torch.empty(0, device=device))
    with torch.no_grad():
        return tuple(choose(one, arch, device, timer) for one in found)


def _kernel_folder() -> str:
    import triton

    return os.fspath(Path(triton.knobs.cache.dir))
