"""``psssr bench``."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psssr_fast.commands import upscale_options as options
from psssr_fast.commands.shell import (
    OK,
    DebugOption,
    JsonOption,
    print_document,
    print_fields,
    print_line,
)
from psssr_fast.commands.upscale import numbers
from psssr_fast.errors import UsageError
from psssr_fast.runtime.planner import amount

if TYPE_CHECKING:
    from psssr_fast.benchmark import Result, Workload
    from psssr_fast.runtime.clock import Idle

ON_GPU, ON_CPU = "wan2.1-1.3b", "nano"
FRAMES = {ON_GPU: 29, ON_CPU: 8}  # that of the paper's Table 4, and the model's own window

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="nano, a directory with weights, OWNER/NAME on Hugging Face; or wan2.1-1.3b: full "
        "size, random weights.",
        show_default="nano on the CPU, else wan2.1-1.3b",
    ),
]
Size = Annotated[str, typer.Option("--size", metavar="HEIGHTxWIDTH", help="Of the output.")]
Frames = Annotated[
    int | None,
    typer.Option("--frames", help="Of a window.", show_default="8 of nano, else 29"),
]
Rounds = Annotated[int, typer.Option("--rounds", help="Repetitions that a median is taken of.")]
Stages = Annotated[
    bool,
    typer.Option("--stages", help="Measure each stage by itself too.", show_default=False),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        help="Write a Chrome trace of one window, with NVTX ranges on CUDA.",
        show_default=False,
    ),
]


def bench(
    ctx: typer.Context,
    model: Model = None,
    size: Size = "720x1280",
    frames: Frames = None,
    rounds: Rounds = 3,
    stages: Stages = False,
    trace: Trace = None,
    device: options.Device = "auto",
    dtype: options.DtypeChoice = options.Dtype.AUTO,
    engine: options.Engine = "fused",
    offline: options.Offline = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Measure how fast this machine is: cold start, one window, file to file, every stage."""
    height, width = numbers("--size", size, "HEIGHTxWIDTH")
    check_at_least_one({"--size": min(height, width), "--frames": frames, "--rounds": rounds})
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on stderr
    cold, begin = "torch" not in sys.modules, time.perf_counter()
    from psssr_fast.benchmark import measure

    import_s = time.perf_counter() - begin if cold else None
    from psssr_fast.engine import check_engine
    from psssr_fast.runtime.cpu import keep_freed_memory

    console = ctx.obj.console
    workload = choose_workload(model, (frames, height, width), device, dtype, offline)
    workload = replace(
        workload, engine=check_engine(engine), rounds=rounds, stages=stages, trace=trace
    )
    if workload.device.type == "cpu":
        keep_freed_memory()  # as psssr upscale does
    found = measure(workload, import_s, console.note)
    if as_json:
        print_document("bench", found.to_json())
    else:
        _print(found)
    return OK


def check_at_least_one(options: dict[str, int | None]) -> None:
    """Raise UsageError for an option that is given and less than 1."""
    for option, value in options.items():
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1; got {value}")


def choose_workload(
    model: str | None,
    shape: tuple[int | None, int, int],
    device: str,
    dtype: options.Dtype,
    offline: bool,
) -> "Workload":
    """What is to be measured, with what the user left open filled in."""
    from psssr_fast.benchmark import Workload
    from psssr_fast.forecast import choose_dtype
    from psssr_fast.loading import resolve_device

    where = resolve_device(device)
    source = model or (ON_CPU if where.type == "cpu" else ON_GPU)
    frames = shape[0] or FRAMES.get(source, FRAMES[ON_GPU])
    what = choose_dtype(where, None if dtype is options.Dtype.AUTO else str(dtype))
    return Workload(source, frames, *shape[1:], device=where, dtype=what, offline=offline)


def idle_line(idle: "Idle") -> str:
    """What the thread that computes waited for, of the time from file to file."""
    device = ""
    if idle.device_share is not None:
        device = f"; no stage on the device {idle.device_share:.1%}"
    return (
        f"{idle.share:.1%} of that time: {idle.start_s:.3g} s for the first window's frames, "
        f"{idle.frames_s:.3g} s for later ones, {idle.output_s:.3g} s for the encoder{device}; "
        f"queues of {idle.queue_frames} frames"
    )


def _print(found: "Result") -> None:
    frames, height, width = found.size
    print_line(f"{found.model} ({found.engine} engine, {found.weights} weights), {found.dtype}")
    print_line(f"{found.device_name}, {found.threads} threads, torch {found.torch}")
    cold, end, memory = found.cold_start, found.end_to_end, found.memory
    imported = "(already imported)" if cold.import_s is None else f"{cold.import_s:.2f} s import"
    took = f"{end.fps:.3g} frames/s ({end.frames} frames in {end.seconds:.3g} s)"
    fields = {
        "cold start": f"{imported} + {cold.load_s:.2f} s load + {cold.first_window_s:.2f} s first "
        "window",
        "model": f"{found.model_fps:.3g} frames/s: {frames}x{height}x{width} in "
        f"{found.window_seconds:.3g} s, median of {found.rounds}",
        "file to file": took if end.skipped is None else f"skipped: {end.skipped}",
        "idle": None if end.idle is None else idle_line(end.idle),
        "memory": f"{amount(memory.measured)} for a window (predicted "
        f"{amount(memory.predicted)}), weights {amount(memory.weights)}",
        "machine": f"matrix product {found.rates.matmul_flops / 1e12:.3g} TFLOP/s, copy "
        f"{found.rates.copy_bytes / 1e9:.3g} GB/s, in this run",
        "trace": found.trace,
    }
    print_fields(fields)
    if found.stages:
        print_line(
            "stage       median s   TFLOP  share of the floor (matrix product or copy above)"
        )
        for stage in found.stages:
            print_line(
                f"  {stage.name:<8}  {stage.seconds:>8.4g}  {stage.flops / 1e12:>6.4g}  "
                f"{stage.floor_share:.0%}"
            )
