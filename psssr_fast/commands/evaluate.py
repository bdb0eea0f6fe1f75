"""``psssr eval``."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psssr_fast.commands import upscale_options as options
from psssr_fast.commands.shell import (
    OK,
    Console,
    DebugOption,
    JsonOption,
    Shell,
    counted,
    print_document,
    print_line,
)
from psssr_fast.config import Profile
from psssr_fast.errors import ModelError, UsageError

if TYPE_CHECKING:
    from psssr_fast.evaluate import Evaluation, Note, Options
    from psssr_fast.evaluate_model import Trial

EVERY = 10.0  # seconds between two lines about how far it is
_ARROWS = {True: "(up)", False: "(down)", None: "(as truth)"}  # where better is

Results = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RESULT...", help="Videos, or folders of pictures, of one size.", show_default=False
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="TRUTH",
        help="What the results should look like; of their size.",
        show_default=False,
    ),
]
Low = Annotated[
    Path | None,
    typer.Option(
        "--input",
        metavar="LR",
        help="What the results were made from: adds LR consistency, and bicubic as a result.",
        show_default=False,
    ),
]
BaseResult = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="VIDEO",
        help="The base step's result: adds low-frequency drift.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Instead of results: degrade the reference by 4 and restore it with this model.",
        show_default=False,
    ),
]
Degradation = Annotated[
    str,
    typer.Option(
        "--degradation",
        metavar="NAME",
        help="With --model: bicubic, bd, light, realesrgan or realesrgan_released.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="With --model: of the degradation.")]
Steps = Annotated[
    bool,
    typer.Option(
        "--steps",
        help="With --model: measure every draft step, and no frequency update.",
        show_default=False,
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="NAME,...",
        help="psnr, psnr-y, ssim, ssim-y, lpips-alex, lpips-vgg, dists, niqe, ewarp, tof, tlp, "
        "tfs, lr-psnr, drift; or all.",
        show_default="all that are quick",
    ),
]
Border = Annotated[
    int, typer.Option("--border", metavar="PIXELS", help="Left out on every side.", min=0)
]
FrameSpan = Annotated[
    str | None,
    typer.Option(
        "--frames",
        metavar="SPAN",
        help="N (the first N), START:STOP, START:, or --frames=-N: for the last N.",
        show_default="all",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="DIR",
        envvar="PSSSR_METRICS_WEIGHTS",
        help="Where lpips_alex, lpips_vgg and dists_alpha_beta.safetensors are.",
        show_default=False,
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="A,B,...",
        help="What to call the results.",
        show_default="file names",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="OUT.png",
        help="Draw every metric over the frames.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing plot.", show_default=False)
]


def evaluate(
    ctx: typer.Context,
    results: Results = None,
    reference: Reference = None,
    low: Low = None,
    base: BaseResult = None,
    model: Model = None,
    degradation: Degradation = "bicubic",
    seed: Seed = 0,
    steps: Steps = False,
    profile: options.ProfileChoice = Profile.RELEASED,
    alpha: options.Alpha = None,
    device: options.Device = "auto",
    dtype: options.DtypeChoice = options.Dtype.AUTO,
    offline: options.Offline = False,
    metrics: Metrics = None,
    border: Border = 0,
    frames: FrameSpan = None,
    weights: Weights = None,
    names: Names = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Measure results, or a model: PSNR, SSIM, LPIPS, NIQE, flicker and more, frame by frame.

    What cannot be computed here is listed with the reason; asked for by name it is
    an error. Values of single frames: --json, --plot.
    """
    shell: Shell = ctx.obj
    chosen = _options(metrics, border, frames, weights)
    _check_plot(plot, overwrite)
    note = _Notes(shell.console)
    if model is None:
        found = _of_files(results or [], names, (reference, low, base), chosen, note)
    else:
        _refuse_clips(bool(results or low or base or names))
        trial = _trial(model, degradation, seed, steps, profile, alpha, device, dtype, offline)
        found = _of_model(reference, trial, chosen, note)
    _show(shell, found, plot, overwrite, as_json)
    return OK


def _options(
    metrics: str | None, border: int, frames: str | None, weights: Path | None
) -> "Options":
    from psssr_fast.evaluate import Options
    from psssr_fast.evaluate_sources import WHOLE, Span

    if weights is not None and not os.path.isdir(weights):
        raise ModelError(f"{weights}: no such directory; needed is one with the metrics' weights")
    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    return Options(names, border, WHOLE if frames is None else Span.parse(frames), weights)


def _check_plot(plot: Path | None, overwrite: bool) -> None:
    from psssr_fast.compare_picture import check_picture_path

    if plot is not None:
        check_picture_path(plot, overwrite)


class _Notes:
    """Says now and then how far it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._console.note(f"{counted(done, 'frame')} measured")


def _of_files(
    results: list[Path],
    names: str | None,
    beside: tuple[Path | None, Path | None, Path | None],
    chosen: "Options",
    note: "Note",
) -> "Evaluation":
    from psssr_fast.evaluate import evaluate_files

    if not results:
        raise UsageError("nothing to measure; give results, or --model with --reference")
    called = [path.name for path in results] if names is None else names.split(",")
    if len(called) != len(results) or len(set(called)) != len(called):
        raise UsageError(
            f"{counted(len(results), 'result')} need as many different --names; got "
            f"{', '.join(called)}"
        )
    reference, low, base = beside
    paths = dict(zip(called, results, strict=True))
    return evaluate_files(paths, chosen, reference=reference, low=low, base=base, note=note)


def _refuse_clips(given: bool) -> None:
    if given:
        raise UsageError("--model makes its own results and input; give only --reference with it")


def _trial(
    model: str,
    degradation: str,
    seed: int,
    steps: bool,
    profile: Profile,
    alpha: float | None,
    device: str,
    dtype: options.Dtype,
    offline: bool,
) -> "Trial":
    from psssr_fast.evaluate_model import Trial
    from psssr_fast.forecast import choose_dtype
    from psssr_fast.loading import resolve_device

    what = choose_dtype(resolve_device(device), None if dtype is options.Dtype.AUTO else str(dtype))
    return Trial(model, degradation, seed, steps, profile, alpha, device, what, offline)


def _of_model(
    reference: Path | None, trial: "Trial", chosen: "Options", note: "Note"
) -> "Evaluation":
    from psssr_fast.evaluate_model import evaluate_model

    if reference is None:
        raise UsageError("--model needs --reference, the video to degrade and restore")
    return evaluate_model(reference, trial, chosen, note)


def _show(
    shell: Shell, found: "Evaluation", plot: Path | None, overwrite: bool, as_json: bool
) -> None:
    from psssr_fast.compare_picture import save_picture
    from psssr_fast.evaluate_picture import draw_evaluation

    if plot is not None:
        save_picture(plot, draw_evaluation(found), overwrite)
    for warning in found.warnings:
        shell.console.warning(warning)
    if as_json:
        print_document("eval", found.to_json())
    else:
        _print_table(found)


def _print_table(found: "Evaluation") -> None:
    facts = "".join(f", {name} {value}" for name, value in found.facts.items())
    cut = f", border {found.border} left out" if found.border else ""
    print_line(f"{counted(found.frames, 'frame')} {found.width}x{found.height}{cut}{facts}")
    rows = [("", *found.columns)]
    for metric in found.metrics:
        means = (found.mean(metric.name, column) for column in found.columns)
        cells = ("-" if mean is None else f"{mean:.{metric.digits}f}" for mean in means)
        rows.append((f"{metric.title} {_ARROWS[metric.higher]}", *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        print_line(f"  {row[0]:<{widths[0]}}  {'  '.join(cells)}".rstrip())
    if found.flow is not None:
        print_line(f"optical flow: {found.flow}")
    for missing in found.missing:
        print_line(f"not computed: {missing.name}: {missing.why}")
