"""``psssr train``."""

import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psssr_fast.commands.shell import (
    INTERRUPTED,
    OK,
    DebugOption,
    JsonOption,
    Shell,
    print_document,
    print_fields,
    print_line,
    shortened,
)
from psssr_fast.errors import OutputError, UsageError
from psssr_fast.runtime.planner import amount

if TYPE_CHECKING:
    from psssr_fast.training.recipe import Recipe
    from psssr_fast.training.trainer import Trainer


class StageChoice(StrEnum):
    """What to train."""

    CODEC = "codec"
    BASE = "base"  # with what it needs: the teacher before, the pixel stage after
    DRAFT = "draft"
    ALL = "all"


_STAGES = {
    StageChoice.CODEC: ("codec",),
    StageChoice.BASE: ("teacher", "base", "pixel"),
    StageChoice.DRAFT: ("draft",),
    StageChoice.ALL: ("codec", "teacher", "base", "pixel", "draft"),
}

StageOption = Annotated[StageChoice, typer.Option("--stage", help="What to train.")]
Size = Annotated[str, typer.Option("--size", metavar="NAME", help="nano or wan2.1-1.3b.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Of videos and photos.", show_default=False),
]
ManifestFile = Annotated[
    Path | None,
    typer.Option("--manifest", metavar="FILE", show_default="manifest.json in the folder"),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Recipe as JSON; what is not in it is the size's default.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="FOLDER", help="Of the run.", show_default=False),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="MODEL",
        help="Weights to begin with: a directory with Wan2.1, or a bundle.",
        show_default=False,
    ),
]
LpipsFile = Annotated[
    str | None,
    typer.Option(
        "--lpips", metavar="FILE", help="Weights of LPIPS-VGG, or their folder.", show_default=False
    ),
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke",
        help="Every stage on a few small clips; fails unless each loss falls.",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the run's last stored state.", show_default=False),
]
PlanOnly = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Only find out how much memory every stage takes; nothing is read or trained.",
        show_default=False,
    ),
]
WriteManifest = Annotated[
    Path | None,
    typer.Option(
        "--write-manifest",
        metavar="FILE",
        help="Only describe what is in --data, with --licence and --held-out.",
        show_default=False,
    ),
]
Licence = Annotated[
    list[str] | None,
    typer.Option(
        "--licence",
        metavar="PATTERN=TEXT",
        help="Licence of the files that match; may be given several times.",
        show_default=False,
    ),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        "--held-out",
        metavar="PATTERN=FRAMES",
        help="Frames at the end that are never trained on; may be given several times.",
        show_default=False,
    ),
]
AllowUnlicensed = Annotated[
    bool,
    typer.Option(
        "--allow-unlicensed", help="Train on files without a recorded licence.", show_default=False
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that prepare clips.")]
SaveEvery = Annotated[int, typer.Option("--save-every", min=1, help="Steps between states.")]
ShowEvery = Annotated[
    int, typer.Option("--show-every", min=0, help="Steps between sample strips; 0: none.")
]
FrameCache = Annotated[
    bool, typer.Option(help="Keep decoded videos on disk: 2.8 MB for a frame of 1280x720.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")]


def train(
    ctx: typer.Context,
    stage: StageOption = StageChoice.ALL,
    size: Size = "nano",
    data: Data = None,
    manifest: ManifestFile = None,
    config: Config = None,
    out: Out = None,
    start: Start = None,
    lpips: LpipsFile = None,
    smoke: Smoke = False,
    resume: Resume = False,
    plan: PlanOnly = False,
    write_manifest: WriteManifest = None,
    licence: Licence = None,
    held_out: HeldOut = None,
    allow_unlicensed: AllowUnlicensed = False,
    workers: Workers = 0,
    save_every: SaveEvery = 500,
    show_every: ShowEvery = 500,
    frame_cache: FrameCache = True,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Train a model, or a part of one, on a folder of videos and photos."""
    shell: Shell = ctx.obj
    shell.result_is_printed = as_json or plan
    if plan:
        return _plan(shell, _recipe(size, config, start, lpips, smoke))
    if data is None:
        raise UsageError("--data is needed: a folder of videos and photos")
    if write_manifest is not None:
        return _write_manifest(shell, data, write_manifest, licence or [], held_out or [])
    if licence or held_out:
        raise UsageError("--licence and --held-out belong to --write-manifest; see its file")
    if out is None:
        raise UsageError("--out is needed: a folder for what the run writes")
    recipe = _recipe(size, config, start, lpips, smoke)
    order = Order(out, data, manifest, allow_unlicensed, _STAGES[stage], resume, smoke, device)
    return _train(shell, recipe, order, (workers, save_every, show_every, frame_cache))


@dataclass(frozen=True)
class Order:
    """What was asked for, beside the recipe; see the options."""

    out: Path
    data: Path
    manifest: Path | None
    allow_unlicensed: bool
    stages: tuple[str, ...]
    resume: bool
    smoke: bool
    device: str


def _recipe(
    size: str, config: Path | None, start: str | None, lpips: str | None, smoke: bool
) -> "Recipe":
    from psssr_fast.training.recipe import default_recipe, load_recipe, smoke_recipe
    from psssr_fast.weights_files import is_file

    recipe = smoke_recipe(size, lpips) if smoke else default_recipe(size)
    if config is not None:
        if not is_file(config):
            raise UsageError(f"--config {shortened(str(config))}: cannot be read: no such file")
        recipe = load_recipe(config, recipe)
    if start is not None:
        recipe = replace(recipe, start=start)
    return recipe if lpips is None else replace(recipe, lpips=lpips)


def _train(shell: Shell, recipe: "Recipe", order: Order, habits: tuple[int, int, int, bool]) -> int:
    from psssr_fast.loading import resolve_device
    from psssr_fast.training.manifest import load_manifest
    from psssr_fast.training.networks import build
    from psssr_fast.training.processes import open_processes
    from psssr_fast.training.trainer import Habits, Trainer

    try:
        manifest = load_manifest(
            order.data, order.manifest, allow_unlicensed=order.allow_unlicensed
        )
        processes = open_processes(resolve_device(order.device))
        models = build(recipe, processes.device)
        note = shell.console.note if processes.rank == 0 else _silent
        trainer = Trainer(recipe, models, manifest, order.out, Habits(*habits), processes, note)
        trainer.run(order.stages, order.resume)
    except KeyboardInterrupt:
        shell.console.note(f"stopped; go on with: psssr train --resume --out {order.out} ...")
        return INTERRUPTED
    return OK if processes.rank else _finish(shell, trainer, order)


def _finish(shell: Shell, trainer: "Trainer", order: Order) -> int:
    """Write the weights, and say what was learnt."""
    from psssr_fast.training.export import export
    from psssr_fast.training.smoke import falls

    learnt = falls(order.out) if order.smoke else []
    written = export(trainer.models, trainer.recipe, trainer.manifest, order.out)
    names = [str(path) for path in written]
    if shell.json:
        print_document("train", {"written": names, "falls": [vars(fall) for fall in learnt]})
        return OK
    for fall in learnt:
        print_line(f"  {fall.stage}: {fall.loss} fell from {fall.first:.4g} to {fall.last:.4g}")
    print_fields({"weights": ", ".join(names), "log": order.out / "log.jsonl"})
    return OK


def _silent(text: str) -> None:
    """What processes other than the first say."""


def _plan(shell: Shell, recipe: "Recipe") -> int:
    from psssr_fast.models.sizes import SIZES, CodecSize
    from psssr_fast.training.plan import plan_stage
    from psssr_fast.training.recipe import STAGES

    small = isinstance(SIZES[recipe.size].codec, CodecSize)
    names = STAGES if small else ("base", "pixel", "draft")
    needs = [plan_stage(name, recipe) for name in names if recipe.steps_of(name)]
    if shell.json:
        print_document("train-plan", {"stages": [{**vars(n), "total": n.total} for n in needs]})
        return OK
    clips = recipe.clips
    print_line(
        f"{recipe.size}: {recipe.batch} clip(s) of {clips.frames}x{clips.size}x{clips.width} a "
        "process; counted on tensors without numbers"
    )
    for need in needs:
        print_line(
            f"  {need.stage:<7}  {amount(need.total)}: weights {amount(need.weights)} + optimizer "
            f"{amount(need.optimizer)} + step {amount(need.step)}; "
            f"{need.trained:,} parameters trained"
        )
    return OK


def _write_manifest(
    shell: Shell, data: Path, path: Path, licences: list[str], held_out: list[str]
) -> int:
    from psssr_fast.training.manifest import is_manifest, make_manifest, write_manifest

    rules = [_rule("--licence", text) for text in licences]
    hidden = []
    for text in held_out:
        pattern, count = _rule("--held-out", text)
        if not count.isdecimal():
            raise UsageError(f"--held-out must be PATTERN=FRAMES; got {text!r}")
        hidden.append((pattern, int(count)))
    manifest = make_manifest(data, rules, hidden)
    if os.path.isfile(path) and not is_manifest(path):
        raise OutputError(f"{path}: exists already, and is no manifest. Choose another name.")
    write_manifest(manifest, path)
    missing = sum(not source.licence for source in manifest.sources)
    if shell.json:
        print_document("train-manifest", {"file": str(path), **manifest.to_json()})
        return OK
    print_fields(
        {"file": path, "sources": len(manifest.sources), "without a licence": missing or None}
    )
    return OK


def _rule(option: str, text: str) -> tuple[str, str]:
    pattern, found, value = text.partition("=")
    if not (found and pattern and value):
        raise UsageError(f"{option} must be PATTERN=VALUE; got {text!r}")
    return pattern, value
