"""Measuring results frame by frame: against the truth, against their input, or by themselves.

All numbers are of 8-bit RGB frames, as files hold them; deeper videos are rounded to it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psssr_fast.arrays import to_bytes, to_planar
from psssr_fast.errors import InputError, UsageError
from psssr_fast.evaluate_sources import WHOLE, Pictures, Pixels, Span, open_pictures
from psssr_fast.metrics.catalogue import ALL, NAMES, Metric, Missing, choose
from psssr_fast.metrics.flow import flow_name
from psssr_fast.metrics.pictures import crop_border
from psssr_fast.metrics.shots import Moment, Shot, Tools
from psssr_fast.metrics.temporal import flow_length, tfs
from psssr_fast.resize import resize_frames

TRUTH, BICUBIC = "truth", "bicubic"
Note = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """What to measure, and where.

    Attributes:
        metrics: names; ``None`` for all that are quick, ``("all",)`` for all.
        border: pixels left out on every side, except of LR consistency and drift.
        span: which frames.
        weights: the directory with the networks' files.
    """

    metrics: tuple[str, ...] | None = None
    border: int = 0
    span: Span = WHOLE
    weights: Path | None = None

    def __post_init__(self) -> None:
        for name in self.metrics or ():
            if name not in (*NAMES, ALL):
                known = ", ".join((*NAMES, ALL))
                raise UsageError(f"no such metric: {name!r}; known: {known}")
        if self.border < 0:
            raise UsageError(f"border must not be negative; got {self.border}")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        columns: names of the results, ``"truth"`` the last if there is one.
        metrics: those computed.
        values: by metric and column, one number per frame; NaN where a metric has none (the
            first frame of one that looks at neighbours). No entry where a metric makes no sense.
        missing: metrics not computed.
        frames, height, width: measured, before the border is cut off.
        border: cut off on every side, pixels.
        flow: what computed optical flow; ``None`` if nothing did.
        facts: anything else that decides the numbers, by name.
        warnings: one line each.
    """

    columns: tuple[str, ...]
    metrics: tuple[Metric, ...]
    values: Mapping[tuple[str, str], NDArray[np.float64]]
    missing: tuple[Missing, ...]
    frames: int
    height: int
    width: int
    border: int
    flow: str | None
    facts: Mapping[str, str | int]
    warnings: tuple[str, ...] = ()

    def mean(self, metric: str, column: str) -> float | None:
        """Mean over the frames that have a value; ``None`` if none has."""
        values = self.values.get((metric, column))
        if values is None or np.isnan(values).all():
            return None
        return float(np.nanmean(values))

    def to_json(self) -> dict[str, Any]:
        """Everything, for ``json.dumps``; infinite and missing numbers are ``None``."""
        return {
            "columns": list(self.columns),
            "frames": self.frames,
            "width": self.width,
            "height": self.height,
            "border": self.border,
            "flow": self.flow,
            **self.facts,
            "metrics": {metric.name: self._of_metric(metric) for metric in self.metrics},
            "not_computed": {missing.name: missing.why for missing in self.missing},
            "warnings": list(self.warnings),
        }

    def _of_metric(self, metric: Metric) -> dict[str, Any]:
        columns = [column for column in self.columns if (metric.name, column) in self.values]
        return {
            "title": metric.title,
            "higher_is_better": metric.higher,
            "mean": {column: _finite(self.mean(metric.name, column)) for column in columns},
            "frames": {
                column: [_finite(value) for value in self.values[metric.name, column].tolist()]
                for column in columns
            },
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class Evaluator:
    """Takes the frames of several results in step, and measures them.

    Args:
        columns: names of the results.
        given: which of ``"truth"``, ``"input"``, ``"base"`` every moment has.
        size: height and width of the results.
        options: what to measure.

    Raises:
        UsageError, ModelError: a metric that was asked for by name cannot be computed.
    """

    def __init__(
        self,
        columns: Sequence[str],
        given: Sequence[str],
        size: tuple[int, int],
        options: Options,
    ) -> None:
        self.columns = (*columns, TRUTH) if "truth" in given else tuple(columns)
        self.size = size
        self.options = options
        crop_border(torch.empty(1, 1, *size, device="meta"), options.border)
        inner = (size[0] - 2 * options.border, size[1] - 2 * options.border)
        self.metrics, self.missing = choose(options.metrics, given, options.weights, inner)
        self._tools = Tools(options.weights)
        self._moment: tuple[Moment, Moment] | None = None
        self._shots: dict[str, tuple[Shot, Shot]] = {}
        self._values: dict[tuple[str, str], list[float]] = {}
        self._lengths: dict[str, list[float]] = {}
        self.frames = 0

    def add(self, results: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
        """Measure one frame of every result.

        Args:
            results: by column, ``[3, height, width]`` in [0, 1].
            given: the truth, the input and the base, those that there are.
        """
        whole = {name: frame[None] for name, frame in given.items()}
        inner = {name: self._inner(frame) for name, frame in whole.items() if name != "input"}
        before = self._moment or (None, None)
        self._moment = Moment(whole, before[0]), Moment(inner, before[1])
        frames = {**results, **({TRUTH: given["truth"]} if "truth" in given else {})}
        with torch.inference_mode():
            for column, frame in frames.items():
                last = self._shots.get(column, (None, None))
                shot = Shot(frame[None], self._moment[0], last[0])
                cropped = Shot(self._inner(frame[None]), self._moment[1], last[1])
                self._shots[column] = shot, cropped
                self._measure(column, shot, cropped)
        self.frames += 1

    def _inner(self, frame: Tensor) -> Tensor:
        return crop_border(frame, self.options.border)

    def _measure(self, column: str, whole: Shot, cropped: Shot) -> None:
        first = whole.before is None
        for metric in self.metrics:
            if column == TRUTH and set(metric.needs) & {"truth", "base"}:
                continue
            shot = whole if set(metric.needs) & {"input", "base"} else cropped
            skip = metric.pair and first
            value = math.nan if skip else float(metric.measure(shot, self._tools))
            self._values.setdefault((metric.name, column), []).append(metric.factor * value)
            if metric.per_motion and not first:
                self._lengths.setdefault(column, []).append(float(flow_length(shot.motion)))

    def finish(
        self, facts: Mapping[str, str | int] = {}, warnings: Sequence[str] = ()
    ) -> Evaluation:
        """Everything measured so far.

        Raises:
            InputError: there was no frame.
        """
        if not self.frames:
            raise InputError("there are no frames to measure; see --frames")
        values = {key: np.array(numbers) for key, numbers in self._values.items()}
        for metric in self.metrics:
            for column, lengths in self._lengths.items() if metric.per_motion else ():
                change = torch.from_numpy(values[metric.name, column])
                ratio = tfs(change, torch.tensor(lengths, dtype=torch.float64))
                values[metric.name, column] = ratio.numpy()
        return Evaluation(
            columns=self.columns,
            metrics=self.metrics,
            values=values,
            missing=self.missing,
            frames=self.frames,
            height=self.size[0],
            width=self.size[1],
            border=self.options.border,
            flow=self._flow(),
            facts=facts,
            warnings=tuple(warnings),
        )

    def _flow(self) -> str | None:
        names = {metric.name for metric in self.metrics if metric.flow}
        if not names or self.frames < 2:
            return None
        used = [flow_name("dis")] if names - {"tof"} else []
        return ", ".join([*used, *([f"tOF: {flow_name('farneback')}"] if "tof" in names else [])])


def to_unit(pixels: Pixels) -> Tensor:
    """uint8 ``[height, width, 3]`` as fp32 ``[3, height, width]`` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255


def enlarged(low: Pixels, size: tuple[int, int]) -> Pixels:
    """What the model starts from: ``low`` by bicubic interpolation, in 8 bits."""
    return to_bytes(resize_frames(to_planar(low)[None], *size)[0])


def evaluate_files(
    results: Mapping[str, Path],
    options: Options,
    *,
    reference: Path | None = None,
    low: Path | None = None,
    base: Path | None = None,
    note: Note | None = None,
) -> Evaluation:
    """Measure videos, or folders of pictures.

    With an input, its bicubic enlargement is measured too, as a result named "bicubic".

    Args:
        results: the videos by name, of one size.
        options: what to measure.
        reference: the truth, of the same size.
        low: the input the results were made from, at its own size.
        base: the result of the base step alone, for the drift.
        note: called with the number of frames done.

    Raises:
        InputError: one cannot be read, or the sizes differ.
        UsageError, ModelError: see :class:`Evaluator`.
    """
    for name, taken in ((BICUBIC, low), (TRUTH, reference)):
        if taken is not None and name in results:
            raise UsageError(f"the name {name!r} is taken; choose others by --names")
    extra = {"truth": reference, "input": low, "base": base}
    given = {name: path for name, path in extra.items() if path is not None}
    shown = {name: open_pictures(path, options.span) for name, path in results.items()}
    beside = {name: open_pictures(path, options.span) for name, path in given.items()}
    size = _common_size([*shown.values(), *(beside[name] for name in beside if name != "input")])
    columns = [*([BICUBIC] if low is not None else []), *results]
    evaluator = Evaluator(columns, tuple(given), size, options)
    sources = [*shown.values(), *beside.values()]
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(source.frames())) for source in sources]
        for frames in zip(*streams, strict=False):
            pictures = dict(zip(shown, frames[: len(shown)], strict=True))
            against = dict(zip(beside, frames[len(shown) :], strict=True))
            if low is not None:
                pictures[BICUBIC] = enlarged(against["input"], size)
            evaluator.add(_units(pictures), _units(against))
            if note is not None:
                note(evaluator.frames)
    return evaluator.finish(warnings=_lengths_differ(sources))


def _units(pictures: Mapping[str, Pixels]) -> dict[str, Tensor]:
    return {name: to_unit(pixels) for name, pixels in pictures.items()}


def _common_size(sources: Sequence[Pictures]) -> tuple[int, int]:
    first = sources[0]
    for source in sources:
        if (source.height, source.width) != (first.height, first.width):
            raise InputError(
                f"{source.path} is {source.width}x{source.height} and {first.path} "
                f"{first.width}x{first.height}; what is measured must have one size"
            )
    return first.height, first.width


def _lengths_differ(sources: Sequence[Pictures]) -> list[str]:
    counts = {source.path: source.count for source in sources}
    known = {path: count for path, count in counts.items() if count is not None}
    if len(set(known.values())) < 2:
        return []
    listed = ", ".join(f"{path} has {count}" for path, count in known.items())
    return [f"numbers of frames differ ({listed}): paired from the first on, the rest is left out"]
