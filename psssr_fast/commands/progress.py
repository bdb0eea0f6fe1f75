"""How far a job is: a bar on a terminal, lines in a log file, NDJSON for programs."""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from psssr_fast.commands.shell import Console, printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from psssr_fast.commands.plan import Job
    from psssr_fast.upscaler import Report


class Stage(Protocol):
    """What is known while a job runs; see :class:`psssr_fast.upscaler.Progress`."""

    @property
    def frames_done(self) -> int: ...

    @property
    def frames_total(self) -> int | None: ...

    @property
    def seconds(self) -> float: ...

    @property
    def frames_resumed(self) -> int: ...


class ProgressStyle(StrEnum):
    """How to show progress."""

    AUTO = "auto"  # a bar on a terminal, plain lines elsewhere
    BAR = "bar"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


def make_progress(style: ProgressStyle) -> "ProgressConsole":
    """The console for a style."""
    if style is ProgressStyle.AUTO:
        style = ProgressStyle.BAR if sys.stderr.isatty() else ProgressStyle.PLAIN
    match style:
        case ProgressStyle.BAR:
            return BarProgress()
        case ProgressStyle.PLAIN:
            return PlainProgress()
        case ProgressStyle.JSON:
            return JsonProgress()
    return ProgressConsole()


@dataclass(frozen=True)
class Rate:
    """Frames a second since the start, and the seconds that are left if that can be told."""

    fps: float
    eta_s: float | None


class Meter:
    """Tells the speed of a job.

    Frames come in bursts, one window at a time. The first frame of a burst comes after the whole
    window was computed, so the speed is taken from what was there before it.
    """

    def __init__(self) -> None:
        self._before: Stage | None = None

    def measure(self, stage: Stage) -> Rate:
        """The speed at a stage; to be called at every one."""
        before, self._before = self._before, stage
        complete = stage.frames_done == stage.frames_total
        known = stage if complete or before is None else before
        fps = (known.frames_done - known.frames_resumed) / max(known.seconds, 1e-9)
        if stage.frames_total is None or (before is None and not complete):
            return Rate(fps, None)
        return Rate(fps, max(0, stage.frames_total - stage.frames_done) / max(fps, 1e-9))


class ProgressConsole(Console):
    """A console that jobs report to; this one keeps quiet about progress."""

    def start(self, job: "Job") -> None:
        """A job begins."""

    def advance(self, job: "Job", stage: Stage) -> None:
        """A frame of it was written."""

    def done(self, job: "Job", report: "Report") -> None:
        """It ended well."""

    def skipped(self, job: "Job") -> None:
        """Its output was there already."""
        self.note(f"{job.output}: exists already, skipped")

    def failed(self, job: "Job", error: str, code: int) -> None:
        """It ended badly."""
        self.error(error, code)


class _Pace:
    """Says when it is time to report again.

    Args:
        seconds: pause between two reports.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0

    def restart(self) -> None:
        """Begin a pause."""
        self._next = time.monotonic() + self._seconds

    def due(self) -> bool:
        """Whether the pause since the last time is over; the next one begins then."""
        if time.monotonic() < self._next:
            return False
        self.restart()
        return True


class PlainProgress(ProgressConsole):
    """One line every few seconds."""

    def __init__(self, pause: float = 5.0) -> None:
        self._pace = _Pace(pause)
        self._meter = Meter()

    def start(self, job: "Job") -> None:
        self._pace.restart()
        self._meter = Meter()
        self.note(f"{job.input} -> {job.output}")

    def advance(self, job: "Job", stage: Stage) -> None:
        rate = self._meter.measure(stage)
        if self._pace.due():
            self.note(f"{job.input}: {_count(stage)}, {_shown(rate)}")


def _count(stage: Stage) -> str:
    total = "" if stage.frames_total is None else f"/{stage.frames_total}"
    return f"{stage.frames_done}{total} frames"


def _shown(rate: Rate) -> str:
    left = "" if rate.eta_s is None else f", {clock(rate.eta_s)} left"
    return f"{rate.fps:.2f} frames/s{left}"


def clock(seconds: float) -> str:
    """``h:mm:ss``, or ``m:ss`` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class BarProgress(ProgressConsole):
    """A bar that is redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[frames]}", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            console=Terminal(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None
        self._meter = Meter()

    def line(self, text: str) -> None:
        self._progress.console.print(
            printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True
        )

    def start(self, job: "Job") -> None:
        self._meter = Meter()
        self._progress.start()
        self._task = self._progress.add_task(
            printable(job.name), total=None, frames="reading", rate=""
        )

    def advance(self, job: "Job", stage: Stage) -> None:
        if self._task is None:
            return
        self._progress.update(
            self._task,
            completed=stage.frames_done,
            total=stage.frames_total,
            frames=_count(stage),
            rate=_shown(self._meter.measure(stage)),
        )

    def done(self, job: "Job", report: "Report") -> None:
        self._stop()

    def failed(self, job: "Job", error: str, code: int) -> None:
        self._stop()
        super().failed(job, error, code)

    def interrupted(self) -> None:
        self._stop()
        super().interrupted()

    def _stop(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
            self._progress.stop()


class JsonProgress(ProgressConsole):
    """One JSON object a line: everything that is said, and progress twice a second."""

    def __init__(self, pause: float = 0.5) -> None:
        self._pace = _Pace(pause)
        self._meter = Meter()

    def _event(self, kind: str, content: dict[str, Any]) -> None:
        print(json.dumps({"event": kind, **content}), file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        self._event("log", {"message": text})

    def note(self, text: str) -> None:
        self._event("log", {"message": text})

    def warning(self, text: str) -> None:
        self._event("warning", {"message": text})

    def error(self, text: str, code: int) -> None:
        self._event("error", {"message": text, "exit_code": code})

    def interrupted(self) -> None:
        self._event("interrupted", {"exit_code": 130})

    def start(self, job: "Job") -> None:
        self._meter = Meter()
        self._event("start", {"input": job.input, "output": job.output})

    def advance(self, job: "Job", stage: Stage) -> None:
        rate = self._meter.measure(stage)
        if self._pace.due() or stage.frames_done == stage.frames_total:
            content = {
                "input": job.input,
                "frame": stage.frames_done,
                "total": stage.frames_total,
                "fps": round(rate.fps, 3),
                "eta_s": None if rate.eta_s is None else round(rate.eta_s, 1),
            }
            self._event("progress", content)

    def done(self, job: "Job", report: "Report") -> None:
        self._event("done", dataclasses.asdict(report))

    def skipped(self, job: "Job") -> None:
        self._event("skipped", {"input": job.input, "output": job.output})

    def failed(self, job: "Job", error: str, code: int) -> None:
        self._event(
            "error", {"input": job.input, "output": job.output, "message": error, "exit_code": code}
        )
