"""``psssr plan``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psssr_fast.commands import upscale_options as options
from psssr_fast.commands.plan import Target
from psssr_fast.commands.shell import (
    OK,
    DebugOption,
    JsonOption,
    counted,
    print_document,
    print_fields,
    print_line,
    shortened,
)
from psssr_fast.commands.upscale import PictureChanges, check_limit
from psssr_fast.config import Profile, settings_for
from psssr_fast.errors import UsageError

if TYPE_CHECKING:
    from psssr_fast.runtime.planner import Plan

Input = Annotated[
    str,
    typer.Argument(metavar="IN", help="A video, or a folder of PNG frames.", show_default=False),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="nano, a directory with weights, OWNER/NAME on Hugging Face; or wan2.1-1.3b, the size "
        "alone, for which no weights are needed.",
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        "--rates",
        metavar="FILE",
        help="What psssr bench --json printed on this device: tells how long it will take.",
        show_default=False,
    ),
]


def explain(
    ctx: typer.Context,
    source: Input,
    scale: options.Scale = None,
    height: options.Height = None,
    model: Model = "nano",
    profile: options.ProfileChoice = Profile.RELEASED,
    device: options.Device = "auto",
    dtype: options.DtypeChoice = options.Dtype.AUTO,
    offline: options.Offline = False,
    window: options.Window = None,
    overlap: options.Overlap = None,
    vram_limit: options.VramLimit = None,
    rates: Rates = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Say which windows an upscale would use, how much memory it needs, and why.

    Nothing is upscaled and no weights are loaded.
    """
    check_limit(vram_limit)
    changes, target = PictureChanges(None, None, window, overlap), Target(scale, height)
    from psssr_fast.video import probe

    info = probe(source)  # what can be refused without torch is
    from psssr_fast.commands.planned import JobPlanner, Wishes
    from psssr_fast.forecast import choose_dtype, model_size
    from psssr_fast.loading import resolve_device

    _check_rates(rates)
    where = resolve_device(device)
    what = choose_dtype(where, None if dtype is options.Dtype.AUTO else str(dtype))
    size = model_size(model, offline=offline)
    settings = changes.apply(settings_for(profile, size.windows))
    wishes = Wishes(vram_limit, window is not None, rates)
    planner = JobPlanner(size, settings, where, what, "fused", wishes)
    plan = planner.plan(info, target.scale, target.height)
    planner.refuse(plan)
    computed = {"model": size.name, "device": str(where), "dtype": str(what).partition(".")[2]}
    _print(source, computed, plan, as_json)
    return OK


def _check_rates(rates: str | None) -> None:
    """Raise UsageError unless the file of ``--rates`` can be read without waiting for a writer."""
    from psssr_fast.weights_files import is_file

    if rates is not None and not is_file(Path(rates)):
        raise UsageError(
            f"--rates {shortened(rates)}: not a document of `psssr bench --json`: no such file"
        )


def _print(source: str, computed: dict[str, str], plan: "Plan", as_json: bool) -> None:
    if as_json:
        print_document("plan", {"input": source, **computed, **plan.to_json()})
        return
    job = plan.job
    count = "? frames" if job.frames is None else counted(job.frames, "frame")
    sizes = f"{count} {job.input_width}x{job.input_height} to {job.width}x{job.height}"
    print_line(f"{source}: {sizes}, {', '.join(computed.values())}")
    print_fields(plan.describe())
