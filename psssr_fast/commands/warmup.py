"""``psssr warmup``."""

from typing import TYPE_CHECKING

import typer

from psssr_fast.commands import upscale_options as options
from psssr_fast.commands.bench import (
    Frames,
    Model,
    Size,
    check_at_least_one,
    choose_workload,
)
from psssr_fast.commands.shell import (
    OK,
    DebugOption,
    JsonOption,
    print_document,
    print_fields,
    print_line,
)
from psssr_fast.commands.upscale import numbers

if TYPE_CHECKING:
    from psssr_fast.warmup import WarmUp


def warmup(
    ctx: typer.Context,
    model: Model = None,
    size: Size = "720x1280",
    frames: Frames = None,
    device: options.Device = "auto",
    dtype: options.DtypeChoice = options.Dtype.AUTO,
    offline: options.Offline = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Measure once what is fastest on this machine, compile for it, and remember.

    On a GPU: kernels are compiled, and of every convolution of that size the ways to compute it are
    timed. On a CPU: whether bf16 or fp32 is faster. Later runs start with what was found.
    """
    height, width = numbers("--size", size, "HEIGHTxWIDTH")
    check_at_least_one({"--size": min(height, width), "--frames": frames})
    from psssr_fast.warmup import warm_up

    ctx.obj.result_is_printed = as_json
    console = ctx.obj.console
    workload = choose_workload(model, (frames, height, width), device, dtype, offline)
    found = warm_up(workload, console.note)
    if as_json:
        print_document("warmup", found.to_json())
    else:
        _print(found)
    return OK


def _print(found: "WarmUp") -> None:
    print_line(found.machine)
    frames, height, width = found.size
    fields = {
        "model": f"{found.model}, {frames}x{height}x{width}, {found.dtype}",
        "took": f"{found.seconds:.3g} s",
        "graphs": f"{found.graphs} captured" if found.graphs else None,
        "kept in": found.path or "nowhere: PSSSR_CHOICES is off",
        "kernels": found.kernels,
    }
    print_fields(fields)
    for choice in found.choices:
        gain = "as usual" if choice.seconds == choice.usual else "instead of the usual"
        print_line(
            f"  {choice.question}: {choice.answer}, {1e3 * choice.seconds:.4g} ms ({gain}, "
            f"{1e3 * choice.usual:.4g} ms; {choice.ways} ways)"
        )
