"""Running jobs: what can be refused is refused before the model is loaded; one bad input of
several does not stop the others."""

import dataclasses
import functools
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psssr_fast.commands.guard import DEFAULT_GUARD, Guard
from psssr_fast.commands.plan import Job, Target
from psssr_fast.commands.progress import ProgressConsole
from psssr_fast.commands.shell import OK, SOME_FAILED, Shell, as_psssr_error, counted
from psssr_fast.errors import PsssrError, UsageError

if TYPE_CHECKING:
    from psssr_fast.upscaler import Report, Upscaler
    from psssr_fast.video import EncoderSettings, VideoInfo

_FAILURES = (PsssrError, MemoryError, OSError, RuntimeError)  # anything else is a mistake of ours


@dataclass(frozen=True)
class Reading:
    """How inputs are read.

    Attributes:
        frame_rate: of folders of PNG frames.
        allow_damaged: keep what can be decoded of a damaged input.
        guard: how far they are trusted.
    """

    frame_rate: Fraction = Fraction(25)
    allow_damaged: bool = False
    guard: Guard = DEFAULT_GUARD


@dataclass(frozen=True)
class Existing:
    """What becomes of what is there already.

    Attributes:
        overwrite: replace outputs.
        skip: leave out jobs whose output is there.
        restart: begin unfinished jobs again.
        chunk_frames: frames that are kept at a time; ``None`` for the usual number.
    """

    overwrite: bool = False
    skip: bool = False
    restart: bool = False
    chunk_frames: int | None = None

    def __post_init__(self) -> None:
        if self.overwrite and self.skip:
            raise UsageError("--overwrite and --skip-existing exclude each other; give one of them")
        if self.chunk_frames is not None and self.chunk_frames < 1:
            raise UsageError(f"--chunk-frames must be at least 1; got {self.chunk_frames}")


@dataclass(frozen=True)
class Writing:
    """How outputs are written.

    Attributes:
        target: their size.
        encoder: how they are compressed.
        existing: what becomes of what is there already.
        reading: how their inputs are read.
    """

    target: Target
    encoder: "EncoderSettings"
    existing: Existing = Existing()
    reading: Reading = Reading()


@dataclass(frozen=True)
class Result:
    """How a job ended: with a report, skipped (neither), or with an error."""

    job: Job
    report: "Report | None" = None
    error: PsssrError | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        content: dict[str, Any] = {"input": self.job.input, "output": self.job.output}
        if self.report is not None:
            return {**content, "status": "done", **dataclasses.asdict(self.report)}
        if self.error is None:
            return {**content, "status": "skipped"}
        error = {"message": str(self.error), "exit_code": self.error.exit_code}
        return {**content, "status": "failed", "error": error}

    def __str__(self) -> str:
        if self.report is None:
            return f"{self.job.output}: skipped"
        report = self.report
        resumed = f"; {report.resumed_frames} were there" if report.resumed_frames else ""
        return (
            f"{report.output}: {counted(report.frames, 'frame')} {report.width}x{report.height} in "
            f"{report.seconds:.1f} s ({report.fps:.2f} frames/s{resumed})"
        )


def exit_code(results: list[Result]) -> int:
    """0, the error's own of a single input, or 7."""
    errors = [result.error for result in results if result.error is not None]
    if not errors:
        return OK
    return errors[0].exit_code if len(results) == 1 else SOME_FAILED


class Batch:
    """Some jobs with the same settings.

    Args:
        writing: how outputs are written.
        load: makes the upscaler; is given the dtype of what is unfinished, if there is one, and
            may insist on another.
        shell: of this run.
        console: where progress goes.
    """

    def __init__(
        self,
        writing: Writing,
        load: Callable[[str | None], "Upscaler"],
        shell: Shell,
        console: ProgressConsole,
    ) -> None:
        self._results: dict[Job, Result] = {}
        self._writing = writing
        self._load = load
        self._upscaler: Upscaler | None = None
        self._settled = False  # an unfinished job would not get the dtype that it asks for
        self._shell = shell
        self._console = console
        self._several = False

    def run(self, jobs: tuple[Job, ...]) -> list[Result]:
        """Run jobs one after the other; the model is loaded if one of them can be done.

        Returns:
            One result for each job, in their order.
        """
        self._several = len(jobs) > 1
        # All inputs and outputs are looked at before anything slow begins, such as importing torch.
        ready = [job for job in jobs if self._attempt(job, self._look)]
        kept = {job: self._kept_dtype(job) for job in ready}
        if ready:
            self._load_in(next(filter(None, kept.values()), None))
        for job in ready:
            self._attempt(job, functools.partial(self._upscale, kept[job]))
        return [self._results[job] for job in jobs]

    def _kept_dtype(self, job: Job) -> str | None:
        """What an unfinished job computes in: another dtype would not go on with it."""
        from psssr_fast.jobs.plan import kept_dtype

        return None if self._writing.existing.restart else kept_dtype(job.output)

    def _load_in(self, dtype: str | None) -> "Upscaler":
        """Make the upscaler; the one before goes first, as there may be no room for two."""
        if self._upscaler is not None:
            self._upscaler = None
            _make_room()
        self._upscaler = upscaler = self._load(dtype)
        self._settled = self._settled or dtype not in (None, _dtype_of(upscaler))
        return upscaler

    def _upscaler_in(self, dtype: str | None) -> "Upscaler":
        """The upscaler that computes in ``dtype``, or if that is ``None`` the one that is there."""
        if self._upscaler is None or not self._fits(self._upscaler, dtype):
            return self._load_in(dtype)
        return self._upscaler

    def _fits(self, upscaler: "Upscaler", dtype: str | None) -> bool:
        return self._settled or dtype in (None, _dtype_of(upscaler))

    def _attempt(self, job: Job, step: Callable[[Job], bool]) -> bool:
        """Whether a job goes on after ``step``; its failure is reported and kept."""
        try:
            return step(job)
        except _FAILURES as error:
            failure = as_psssr_error(error)
            self._shell.show_traceback(error)
            _forget_frames(failure)
            text = str(failure)
            if self._several and not text.startswith(f"{job.input}:"):
                text = f"{job.input}: {text}"
            self._console.failed(job, text, failure.exit_code)
            self._results[job] = Result(job, error=failure)
            return False

    def _look(self, job: Job) -> bool:
        """Whether there is something to do; what can be refused is refused here."""
        from psssr_fast.jobs.place import check_place
        from psssr_fast.video import probe

        guard = self._writing.reading.guard
        info = probe(job.input, limits=guard.limits, sandbox=guard.sandbox)
        if self._writing.existing.skip and _is_complete(job, info):
            self._console.skipped(job)
            self._results[job] = Result(job)
            return False
        check_place(job.output, job.input, self._writing.existing.overwrite)
        return True

    def _upscale(self, dtype: str | None, job: Job) -> bool:
        self._console.start(job)
        upscaler = self._upscaler_in(dtype)
        report = upscaler.upscale_video(
            job.input,
            job.output,
            scale=self._writing.target.scale,
            height=self._writing.target.height,
            encoder=self._writing.encoder,
            overwrite=self._writing.existing.overwrite,
            resume=not self._writing.existing.restart,
            chunk_frames=self._writing.existing.chunk_frames,
            allow_damaged=self._writing.reading.allow_damaged,
            frame_rate=self._writing.reading.frame_rate,
            limits=self._writing.reading.guard.limits,
            sandbox=self._writing.reading.guard.sandbox,
            progress=functools.partial(self._console.advance, job),
        )
        self._console.done(job, report)
        for warning in report.warnings:
            self._console.warning(f"{job.input}: {warning}")
        self._results[job] = Result(job, report)
        return True


def _dtype_of(upscaler: "Upscaler") -> str:
    return str(upscaler.networks.dtype).removeprefix("torch.")


def _is_complete(job: Job, info: "VideoInfo") -> bool:
    """Whether the output is there: a file, or a folder with a PNG for every frame."""
    from psssr_fast.jobs.place import is_being_made

    output = Path(job.output)
    if is_being_made(output):
        return False
    if os.path.isdir(output):  # of Path they raise for names that the system refuses
        found = sum(file.suffix.lower() == ".png" for file in output.iterdir())
        return info.frames is not None and info.frames_exact and found >= info.frames
    return os.path.exists(output)


def _make_room() -> None:
    """Free a model that is no longer used: its parts refer to each other."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _forget_frames(error: BaseException) -> None:
    """Keep an error without what the functions that it passed had in their variables."""
    follows: BaseException | None = error
    while follows is not None:
        here, follows = follows, follows.__cause__ or follows.__context__
        here.__traceback__ = here.__cause__ = here.__context__ = None
