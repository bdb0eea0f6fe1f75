"""Running jobs: what can be refused is refused before the model is loaded; one bad input of
several does not stop the others."""

import contextlib
import dataclasses
import functools
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

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
    """

    frame_rate: Fraction = Fraction(25)
    allow_damaged: bool = False


@dataclass(frozen=True)
class Writing:
    """How outputs are written.

    Attributes:
        target: their size.
        encoder: how they are compressed.
        overwrite: replace what is there.
        skip_existing: leave out jobs whose output is there.
        reading: how their inputs are read.
    """

    target: Target
    encoder: "EncoderSettings"
    overwrite: bool
    skip_existing: bool
    reading: Reading = Reading()

    def __post_init__(self) -> None:
        if self.overwrite and self.skip_existing:
            raise UsageError("--overwrite and --skip-existing exclude each other; give one of them")


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
        return (
            f"{report.output}: {counted(report.frames, 'frame')} {report.width}x{report.height} in "
            f"{report.seconds:.1f} s ({report.fps:.2f} frames/s)"
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
        load: makes the upscaler.
        shell: of this run.
        console: where progress goes.
    """

    def __init__(
        self,
        writing: Writing,
        load: Callable[[], "Upscaler"],
        shell: Shell,
        console: ProgressConsole,
    ) -> None:
        self._results: dict[Job, Result] = {}
        self._writing = writing
        self._load = load
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
        if ready:
            upscaler = self._load()
            for job in ready:
                self._attempt(job, functools.partial(self._upscale, upscaler))
        return [self._results[job] for job in jobs]

    def _attempt(self, job: Job, step: Callable[[Job], bool]) -> bool:
        """Whether a job goes on after ``step``; its failure is reported and kept."""
        try:
            return step(job)
        except BrokenPipeError:
            raise
        except _FAILURES as error:
            failure = as_psssr_error(error)
            if self._shell.debug:
                traceback.print_exception(error)
            text = str(failure)
            if self._several and not text.startswith(f"{job.input}:"):
                text = f"{job.input}: {text}"
            self._console.failed(job, text, failure.exit_code)
            self._results[job] = Result(job, error=failure)
            return False

    def _look(self, job: Job) -> bool:
        """Whether there is something to do; what can be refused is refused here."""
        from psssr_fast.video import check_output, probe

        info = probe(job.input)
        if self._writing.skip_existing and _is_complete(job, info):
            self._console.skipped(job)
            self._results[job] = Result(job)
            return False
        check_output(job.output, job.input, self._writing.overwrite)
        return True

    def _upscale(self, upscaler: "Upscaler", job: Job) -> bool:
        self._console.start(job)
        report = upscaler.upscale_video(
            job.input,
            job.output,
            scale=self._writing.target.scale,
            height=self._writing.target.height,
            encoder=self._writing.encoder,
            overwrite=self._writing.overwrite,
            allow_damaged=self._writing.reading.allow_damaged,
            frame_rate=self._writing.reading.frame_rate,
            progress=functools.partial(self._console.advance, job),
        )
        self._console.done(job, report)
        for warning in report.warnings:
            self._console.warning(f"{job.input}: {warning}")
        self._results[job] = Result(job, report)
        return True


def _is_complete(job: Job, info: "VideoInfo") -> bool:
    """Whether the output is there: a file, or a folder with a PNG for every frame."""
    output = Path(job.output)
    if output.is_dir():
        found = sum(file.suffix.lower() == ".png" for file in output.iterdir())
        return info.frames is not None and info.frames_exact and found >= info.frames
    return output.exists()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does, and a second signal not disturb the cleaning.

    After a signal both stay ignored: the process is about to end.

    Raises:
        KeyboardInterrupt: on SIGINT.
        SystemExit: on SIGTERM, with code 143.
    """
    # A signal that is ignored stays so: that is how a shell protects background jobs from Ctrl-C.
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        if not stopped:
            for number, handler in before.items():
                signal.signal(number, handler)
