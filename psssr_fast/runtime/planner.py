"""Choose windows that fit in memory, before anything runs, and say what was chosen and why.

Nothing here measures or estimates: that is the business of the :class:`Forecast` that is passed
in. This module imports no torch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from typing import Any, Literal, Protocol

from psssr_fast.config import Windows
from psssr_fast.errors import OutOfMemory

GIB, MIB = 2**30, 2**20
SMALLEST_SIDE = 128  # pixels; below this a window holds little but its overlap
MOST_CUTS = 8  # ways to cut an axis that are looked at
MOST_REHEARSALS = 8
ENDLESS = 10_000  # frames: what a stream of unknown length is taken for when work is compared


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


@dataclass(frozen=True)
class Job:
    """A clip to upscale; ``frames`` is ``None`` where nobody knows."""

    frames: int | None
    input_height: int
    input_width: int
    height: int
    width: int


@dataclass(frozen=True)
class Need:
    """Bytes that upscaling a clip takes at its worst moment.

    Attributes:
        weights: of the model.
        clip: of what is kept around a window: the enlarged clip, results to be blended.
        window: of the tensors that one window makes.
        scratch: that libraries may take more for a moment.
        stage: of the window, in which the worst moment comes.
    """

    weights: int
    clip: int
    window: int
    scratch: int
    stage: str

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.clip + self.window + self.scratch

    def __str__(self) -> str:
        parts = {"weights": self.weights, "clip": self.clip, "window": self.window}
        if self.scratch:
            parts["scratch"] = self.scratch
        return " + ".join(f"{name} {amount(size)}" for name, size in parts.items())


@dataclass(frozen=True)
class Limit:
    """How many bytes may be used, and who says so."""

    bytes: int
    source: str

    def __str__(self) -> str:
        return f"{amount(self.bytes)} ({self.source})"


@dataclass(frozen=True)
class Time:
    """How long it takes, or at the least takes; reading and writing files excluded."""

    seconds: float
    at_least: bool
    source: str


class Forecast(Protocol):
    """What is known of a model on a device before it runs."""

    def need(self, job: Job, windows: Windows, together: bool = False) -> Need:
        """Memory; ``together`` if both decodes of a window run as one batch."""

    def flops(self, job: Job, windows: Windows) -> int:
        """Work of one window."""

    def seconds(self, job: Job, windows: Windows) -> Time | None:
        """Time of one window, if it is known."""


@dataclass(frozen=True)
class Plan:
    """How a clip will be upscaled.

    Attributes:
        job: the clip.
        windows: as the upscaler takes them.
        counts: how many windows over time (``None`` if unknown), down and across.
        need: memory.
        together: memory if both decodes of a window ran as one batch.
        limit: how much there may be; ``None`` if nobody knows.
        decodes: whether both decodes of a window run as one batch.
        flops: of one window.
        time: of all windows, or of one if their number is not known; ``None`` if unknown.
        reason: why these windows.
    """

    job: Job
    windows: Windows
    counts: tuple[int | None, int, int]
    need: Need
    together: Need
    limit: Limit | None
    decodes: Literal["in turn", "together"]
    flops: int
    time: Time | None
    reason: str

    @property
    def fits(self) -> bool:
        """Whether memory is enough, as far as is known."""
        return self.limit is None or self.need.total <= self.limit.bytes

    def describe(self) -> dict[str, str]:
        """A few lines for people, by their titles."""
        over_time, down, across = self.counts
        shared = f"{self.windows.overlap_frames}x{self.windows.overlap_pixels}"
        times = "?" if over_time is None else over_time
        limit = "" if self.limit is None else f" of {self.limit}"
        fits = "" if self.fits else ": does not fit"
        return {
            "windows": f"{shape_text(shape_of(self.job, self.windows))}, overlap {shared}; "
            f"{times} over time, {down} down, {across} across",
            "memory": f"{amount(self.need.total)}{limit}{fits}: {self.need}; "
            f"most while in {self.need.stage}",
            "decodes": f"{self.decodes}; both at once would take {amount(self.together.total)}",
            "work": f"{self.flops / 1e12:.3g} TFLOP a window",
            "time": self._time(),
            "why": self.reason,
        }

    def _time(self) -> str:
        if self.time is None:
            return "not known: nothing was measured on this device; see psssr bench and --rates"
        words = "at least" if self.time.at_least else "about"
        unit = " a window" if self.counts[0] is None else ""
        return f"{words} {self.time.seconds:.3g} s{unit}, {self.time.source}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        windows, need, limit = self.windows, self.need, self.limit
        return {
            "job": vars(self.job),
            "window": list(shape_of(self.job, windows)),
            "overlap": [windows.overlap_frames, windows.overlap_pixels],
            "counts": list(self.counts),
            "memory_bytes": {**vars(need), "total": need.total},
            "memory_bytes_decodes_together": self.together.total,
            "limit_bytes": None if limit is None else limit.bytes,
            "limit": None if limit is None else limit.source,
            "fits": self.fits,
            "decodes": self.decodes,
            "window_flops": self.flops,
            "time": None if self.time is None else vars(self.time),
            "reason": self.reason,
        }


def resized(windows: Windows, frames: int, height: int, width: int) -> Windows:
    """Other windows, which share as much as these, but no more than their half."""
    return replace(
        windows,
        frames=frames,
        height=height,
        width=width,
        overlap_frames=min(windows.overlap_frames, frames // 2),
        overlap_pixels=min(windows.overlap_pixels, height // 2, width // 2),
    )


def shape_of(job: Job, windows: Windows) -> tuple[int, int, int]:
    """Frames, height and width of the largest window that really comes up."""
    frames = windows.frames if job.frames is None else min(windows.frames, job.frames)
    return frames, min(windows.height, job.height), min(windows.width, job.width)


def shape_text(shape: tuple[int, int, int]) -> str:
    """``8x720x1280``, as ``--window`` takes it."""
    return "x".join(map(str, shape))


def count_windows(length: int, size: int, overlap: int) -> int:
    """How many windows of ``size`` cover ``length``; as many as ``windows.window_starts`` has."""
    return 1 if length <= size else ceil((length - size) / (size - overlap)) + 1


def count_all(job: Job, windows: Windows) -> tuple[int | None, int, int]:
    """Windows over time, down and across."""
    shared = windows.overlap_pixels
    over_time = None
    if job.frames is not None:
        over_time = count_windows(job.frames, windows.frames, windows.overlap_frames)
    down = count_windows(job.height, windows.height, shared)
    return over_time, down, count_windows(job.width, windows.width, shared)


def make_plan(
    job: Job,
    windows: Windows,
    forecast: Forecast,
    limit: Limit | None,
    *,
    fixed: bool = False,
    frames_multiple: int = 1,
    batches: bool = False,
) -> Plan:
    """Choose windows, or only look at the given ones.

    Args:
        job: the clip.
        windows: the largest there may be.
        forecast: of the model on its device.
        limit: on memory.
        fixed: take ``windows`` as they are, fit or not.
        frames_multiple: the model takes ``frames_multiple * n + 1`` frames without padding.
        batches: whether the model can decode twice at once.

    Raises:
        OutOfMemory: not ``fixed``, and not even the smallest windows fit.
    """
    need = forecast.need(job, windows)
    reason = "as asked for" if fixed else "the model's own windows fit"
    if not fixed and limit is not None and need.total > limit.bytes:
        own = need
        windows, need = _largest_that_fits(job, windows, need, forecast, limit, frames_multiple)
        reason = (
            f"the model's own windows need {amount(own.total)}; of those that fit, these "
            "make the least work"
        )
    together = forecast.need(job, windows, together=True)
    roomy = limit is not None and together.total <= limit.bytes
    counts, time = count_all(job, windows), forecast.seconds(job, windows)
    if time is not None:
        all_of_them = prod(count for count in counts if count) if counts[0] else 1
        time = replace(time, seconds=time.seconds * all_of_them)
    return Plan(
        job=job,
        windows=windows,
        counts=counts,
        need=together if batches and roomy else need,
        together=together,
        limit=limit,
        decodes="together" if batches and roomy else "in turn",
        flops=forecast.flops(job, windows),
        time=time,
        reason=reason,
    )


def check_fit(plan: Plan, name: str) -> None:
    """Raise OutOfMemory, with the numbers, unless a plan fits; ``name`` is what is refused."""
    if plan.limit is not None and not plan.fits:
        raise OutOfMemory(
            f"{name} {shape_text(shape_of(plan.job, plan.windows))} needs "
            f"{amount(plan.need.total)} ({plan.need}); there may be {plan.limit}. Allow "
            "more, or use smaller windows, a smaller output or a smaller model"
        )


def _largest_that_fits(
    job: Job,
    windows: Windows,
    need: Need,
    forecast: Forecast,
    limit: Limit,
    frames_multiple: int,
) -> tuple[Windows, Need]:
    """The windows that make the least work of those that fit.

    Those with less than half of the model's frames come last: motion needs them.
    """
    candidates = list(_smaller(job, windows, frames_multiple))
    fewest = resized(windows, min(c.frames for c in candidates), windows.height, windows.width)
    guess = _guess(job, {windows: need, fewest: forecast.need(job, fewest)})

    def badness(candidate: Windows) -> tuple[bool, int, int]:
        endless = job if job.frames else replace(job, frames=ENDLESS)
        counts = count_all(endless, candidate)
        work = prod(count or 1 for count in counts) * forecast.flops(job, candidate)
        shape = shape_of(job, candidate)
        return 2 * shape[0] < shape_of(job, windows)[0], work, -prod(shape)

    likely = [candidate for candidate in candidates if guess(candidate) <= limit.bytes]
    smallest = min(candidates, key=guess)
    for candidate in [*sorted(likely, key=badness)[:MOST_REHEARSALS], smallest]:
        found = forecast.need(job, candidate)
        if found.total <= limit.bytes:
            return candidate, found
    raise OutOfMemory(
        f"even windows of {shape_text(shape_of(job, smallest))} need {amount(found.total)} "
        f"({found}); there may be {limit}. Allow more, or use a smaller output or a smaller model"
    )


def _guess(job: Job, known: Mapping[Windows, Need]) -> Callable[[Windows], float]:
    """Memory of any windows, from that of two which differ in frames alone.

    It is a straight line over frames, the slope and start of which grow with the area of a window.
    Near enough to know what is worth a rehearsal.
    """
    (one, few), (other, many) = sorted(known.items(), key=lambda item: item[0].frames)
    first, last = shape_of(job, one), shape_of(job, other)
    distance = max(1, last[0] - first[0])

    def line(frames: int, low: int, high: int) -> float:
        return low + (high - low) * (frames - first[0]) / distance

    def guess(candidate: Windows) -> float:
        frames, height, width = shape_of(job, candidate)
        clip = line(frames, few.clip, many.clip)
        window = line(frames, few.window + few.scratch, many.window + many.scratch)
        return many.weights + clip + window * height * width / (last[1] * last[2])

    return guess


def _smaller(job: Job, windows: Windows, frames_multiple: int) -> Iterator[Windows]:
    """Windows no larger than ``windows`` that cut the clip evenly."""
    frames, height, width = shape_of(job, windows)
    step = frames_multiple if frames > frames_multiple else 1
    lengths = [frames, *range((frames - 2) // step * step + 1, 1, -step)][: 2 * MOST_CUTS]
    heights = _sides(job.height, height, windows.overlap_pixels)
    widths = _sides(job.width, width, windows.overlap_pixels)
    for shape in product(lengths, heights, widths):
        yield resized(windows, *shape)


def _sides(length: int, largest: int, overlap: int) -> list[int]:
    """For 1, 2, ... windows along an axis the smallest side, in steps of 16, that does."""
    found: dict[int, int] = {}
    smallest = min(SMALLEST_SIDE, largest)
    for side in [*range(smallest, largest, 16), largest]:
        found.setdefault(count_windows(length, side, min(overlap, side // 2)), side)
    return [found[count] for count in sorted(found)][:MOST_CUTS]
