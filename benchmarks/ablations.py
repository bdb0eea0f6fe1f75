"""What each part of the method does for a model: ``python benchmarks/ablations.py CLIP...``.

Tables 3, 5 and 7 of the paper, as far as they can be had without training, and Table 3's losses
for models that were trained without one (``--variant NAME=BUNDLE``). Every clip is reduced four
times as ``psssr eval`` does; the model restores it once for each number of steps, without the
frequency-domain update; all rows are updates of those pictures. (The product updates each window
before windows are blended: on clips larger than a window, pixels in the overlap may differ.)

``-o FOLDER`` writes ``ablations.md`` and ``ablations.png``.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from ablations_report import Findings, document, plot
from eval_script import CLIP, add_options, measurable, run
from torch import Tensor

from psssr_fast.compare_picture import check_picture_path, save_picture
from psssr_fast.config import FrequencyUpdate, Profile, settings_for
from psssr_fast.errors import OutputError, UsageError
from psssr_fast.evaluate import BICUBIC, TRUTH, Evaluator, Options, enlarged, to_unit
from psssr_fast.evaluate_model import (
    WITHOUT_UPDATE,
    Pixels,
    Trial,
    degraded,
    read_truth,
    variants,
)
from psssr_fast.evaluate_sources import Span
from psssr_fast.ops.frequency_update import update_frequencies
from psssr_fast.runtime.cpu import keep_freed_memory

ALPHAS = (0.2, 0.4, 0.6, 0.8)  # 0 is the base alone, 1 all steps
SLOW = ("niqe", "ewarp", "tof")
METRICS = ("psnr-y", "ssim-y", "lpips-alex", "niqe", "ewarp", "tof", "drift")
RELEASED = settings_for(Profile.RELEASED).frequency_update
PAPER = settings_for(Profile.PAPER).frequency_update

Steps = Sequence[Tensor]  # the base's frame, then every draft step's, without update
Rule = Callable[[Steps], Tensor]
Row = dict[str, float]  # metric: mean


@dataclass(frozen=True)
class Clip:
    """A clip, and what it was reduced to."""

    name: str
    truth: Pixels
    low: Pixels


def updated(steps: int, update: FrequencyUpdate) -> Rule:
    """The picture after so many steps, updated once, with the last."""
    if steps == 1:
        return lambda pictures: pictures[0]
    return lambda pictures: update_frequencies(pictures[0], pictures[steps - 1], update)


def iterated(steps: int, update: FrequencyUpdate) -> Rule:
    """The picture after so many steps, updated after each: the paper's loop."""

    def rule(pictures: Steps) -> Tensor:
        result = pictures[0]
        for sharp in pictures[1:steps]:
            result = update_frequencies(result, sharp, update)
        return result

    return rule


def rules(steps: int) -> dict[str, Rule]:
    """Every row that is measured in full, by name."""
    found = {f"step {count}": updated(count, RELEASED) for count in range(1, steps + 1)}
    for count in range(2, steps + 1):
        found[f"raw {count}"] = lambda pictures, last=count - 1: pictures[last]
        found[f"loop {count}"] = iterated(count, PAPER)
    for alpha in ALPHAS:
        update = replace(RELEASED, strength=alpha, alpha_mode="lerp")
        found[f"lerp {alpha}"] = updated(steps, update)
    return found


def literal_rules(steps: int) -> dict[str, Rule]:
    """Equation 14 as it stands; rows that are measured without the slow metrics."""
    return {
        f"literal {alpha}": updated(steps, replace(RELEASED, strength=alpha, alpha_mode="literal"))
        for alpha in ALPHAS
    }


def restored(low: Pixels, trial: Trial) -> list[Tensor]:
    """The pictures after one step, two, and so on, ``[frames, 3, height, width]`` in [0, 1]."""
    clip = torch.from_numpy(low).permute(0, 3, 1, 2) / 255
    pictures = []
    for name, up in variants(replace(trial, steps=True)).items():
        if name == WITHOUT_UPDATE:
            continue
        update = replace(up.settings.frequency_update, filter="none")
        up.settings = replace(up.settings, frequency_update=update)
        pictures.append(up(clip))
    return pictures


def measure(
    clip: Clip, pictures: Steps, chosen: Mapping[str, Rule], options: Options
) -> dict[str, Row]:
    """Mean of every metric over the frames of one clip, for every row, bicubic and the truth."""
    size = (clip.truth.shape[1], clip.truth.shape[2])
    given = ("truth", "input", "base")
    evaluator = Evaluator((BICUBIC, *chosen), given, size, options)
    for index, (sharp, small) in enumerate(zip(clip.truth, clip.low, strict=True)):
        steps = [picture[index : index + 1] for picture in pictures]
        frames = {name: eight_bit(rule(steps)[0]) for name, rule in chosen.items()}
        frames[BICUBIC] = to_unit(enlarged(small, size))
        beside = {"truth": to_unit(sharp), "input": to_unit(small), "base": eight_bit(steps[0][0])}
        evaluator.add(frames, beside)
    found = evaluator.finish()
    rows: dict[str, Row] = {}
    for column in found.columns:
        means = {metric.name: found.mean(metric.name, column) for metric in found.metrics}
        rows[column] = {name: mean for name, mean in means.items() if mean is not None}
    own = rows[TRUTH].get("ewarp")
    for row in rows.values():
        if own and "ewarp" in row:
            row["ewarp"] /= own
    return rows


def eight_bit(picture: Tensor) -> Tensor:
    """As a file would hold it."""
    return (picture * 255).round() / 255


def over_clips(clips: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """Mean of the clips' means; a metric that one clip lacks is left out."""
    return {
        name: {
            metric: fmean(rows[name][metric] for rows in clips)
            for metric in row
            if all(metric in rows[name] for rows in clips)
        }
        for name, row in clips[0].items()
    }


def ablate(clips: Sequence[Clip], trial: Trial, arguments: argparse.Namespace) -> dict[str, Row]:
    """All rows of one model, and of those that were trained otherwise, over all clips."""
    sizes = [(clip.truth.shape[1], clip.truth.shape[2]) for clip in clips]
    heights, widths = zip(*sizes, strict=True)
    metrics = measurable(METRICS, (min(heights), min(widths)), arguments.weights)
    names = tuple(metric.name for metric in metrics)
    full = Options(names, weights=arguments.weights)
    quick = Options(tuple(name for name in names if name not in SLOW), weights=arguments.weights)
    done = []
    for clip in clips:
        print(f"{clip.name}: {len(clip.truth)} frames", file=sys.stderr)
        pictures = restored(clip.low, trial)
        rows = measure(clip, pictures, literal_rules(len(pictures)), quick)
        rows |= measure(clip, pictures, rules(len(pictures)), full)
        for name, bundle in arguments.variant.items():
            other = restored(clip.low, replace(trial, model=bundle))
            one = {f"variant {name}": updated(len(other), RELEASED)}
            rows = measure(clip, other, one, full) | rows
        done.append(rows)
    return over_clips(done)


def read_clip(path: Path, frames: str) -> Clip:
    """A clip, reduced by 4."""
    truth = read_truth(path, Options(span=Span.parse(frames)))
    return Clip(path.name, truth, degraded(truth, "bicubic", 0))


def check_place(folder: Path | None, overwrite: bool) -> None:
    """Find out before any work whether the results can be written.

    Raises:
        OutputError: there is no such folder, or the files exist already.
    """
    if folder is not None:
        check_picture_path(folder / "ablations.png", overwrite)
        if (folder / "ablations.md").exists() and not overwrite:
            raise OutputError(f"{folder / 'ablations.md'}: exists already. Pass --overwrite.")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path, default=[CLIP], help="truths, by path")
    add_options(parser, "-8:")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=BUNDLE")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()
    pairs = [text.partition("=") for text in arguments.variant]
    if not all(name and bundle for name, _, bundle in pairs):
        raise UsageError(f"--variant must be NAME=BUNDLE; got {', '.join(arguments.variant)}")
    arguments.variant = {name: bundle for name, _, bundle in pairs}
    return arguments


def main() -> None:
    """Command line of the script."""
    arguments = parsed()
    check_place(arguments.output, arguments.overwrite)
    clips = [read_clip(path, arguments.frames) for path in arguments.clips]
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    rows = ablate(clips, Trial(arguments.model, dtype=dtype), arguments)
    findings = Findings(
        model=Path(arguments.model).stem,
        clips={clip.name: len(clip.truth) for clip in clips},
        variants=tuple(arguments.variant),
        alphas=ALPHAS,
        rows=rows,
    )
    text = document(findings)
    print(text)
    if arguments.output is not None:
        save_picture(arguments.output / "ablations.png", plot(findings), arguments.overwrite)
        (arguments.output / "ablations.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
