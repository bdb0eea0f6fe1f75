"""One output in the making, from the first look at its place to the last file removed.

The order of things on the disk: plan; for each chunk its file, then its line in the journal; a line
when the input has ended; the output under a temporary name; a note of what it is; the output under
its own name; then everything else is removed, the note last. Whatever is interrupted, the next run
finds the last complete step and goes on from there.
"""

import contextlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from psssr_fast.errors import InputError, OutputError
from psssr_fast.faults import fault
from psssr_fast.files import Folder
from psssr_fast.jobs.chunks import Recipe, pin_threads
from psssr_fast.jobs.files import JOURNAL, PLAN, job_folder, place_of, readable, storing
from psssr_fast.jobs.finished import Finished, is_unfinished, load_finished
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.input import InputWatch, look_at
from psssr_fast.jobs.journal import Chunk, Ending, Journal
from psssr_fast.jobs.kept import drop_frames, frames_in_journal, keep_frames, keep_numbered
from psssr_fast.jobs.lock import JobLock
from psssr_fast.jobs.order import Order
from psssr_fast.jobs.place import moved, taken
from psssr_fast.jobs.plan import (
    adopt,
    check_form,
    differences,
    digest_of,
    load_plan,
    restart_frame,
    save_plan,
    settle_threads,
)
from psssr_fast.jobs.sinks import ImageSink, Made, Sink, VideoSink
from psssr_fast.jobs.space import estimate
from psssr_fast.video import Frame, check_output

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
_ASSEMBLIES = 3  # tries to copy the sound of an input that something touches meanwhile
SCENE_MEMORY = 16  # frames before a frame that may decide whether it begins a scene


class Job:
    """A context manager. Frames come from :meth:`frames` and go to :meth:`write`; :meth:`finish`
    makes the output. An exception leaves what is safe for the next run.

    Args:
        order: what is to be made.

    Attributes:
        resumed: frames that an earlier run has finished.
        first: from which one pictures must be computed, to go on after those.
        start: from which one :meth:`frames` gives, so that scenes are told as before.
        frames_done: frames finished now.
        warnings: what a user should know, one line each; complete after :meth:`finish`.
    """

    def __init__(self, order: Order) -> None:
        self.resumed = self.first = self.start = self.frames_done = 0
        self.warnings: tuple[str, ...] = ()
        self._order, self._plan = order, order.plan
        self._output = Path(order.output)
        self._place = place_of(order.output)  # the same one if the current folder changes
        self._lock = JobLock(job_folder(order.output), self._output)
        path = place_of(order.reader.info.path)
        self._source = replace(order.reader.info, path=path)
        self._input = InputWatch(path, order.plan.source, order.seen or look_at(path))
        self._stack = ExitStack()
        self._journal: Journal | None = None
        self._sink: Sink | None = None
        self._finished: Finished | None = None
        self._cuts: list[int] = []
        self._written = 0

    @property
    def complete(self) -> bool:
        """Whether all frames are there: nothing must be read or computed."""
        return self._finished is not None or self._log.ending is not None

    def __enter__(self) -> Self:
        """Take the lock, and find out what is there.

        Raises:
            InputError: an unfinished job has another plan, or a damaged one.
            OutputError: locked by another process; exists already; the disk is full.
            UsageError: the encoder does not know an option.
        """
        with storing(self._output, self._needed):
            self._stack.enter_context(self._lock)
            try:
                # The folder of the output, through which the output gets its name.
                self._parent = self._stack.enter_context(Folder(self._lock.folder.path.parent))
                self._look()
            except BaseException:
                self._leave()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def frames(self) -> Iterator[Frame]:
        """Frames of the input from :attr:`start` on.

        Raises:
            InputError: the input is damaged, or other frames come than in an earlier run.
        """
        chunks = tuple(self._log.chunks)
        known = (pts for chunk in chunks for pts in chunk.pts)
        for index, frame in enumerate(self._read()):
            self._lock.beat()
            if index < self.resumed and frame.pts != next(known):
                raise self._changed()
            if index >= self.start:
                yield frame
        if next(known, None) is not None:
            raise self._changed()

    def _read(self) -> Iterator[Frame]:
        try:
            yield from self._order.reader
        except OSError as error:  # it was deleted, or lies on a disk that has gone
            raise InputError(
                f"{self._order.reader.info.path}: cannot be read any more: "
                f"{error.strerror or error}. Put it back and run the same command again."
            ) from error

    def noting(self, marked: "Iterator[tuple[Item, bool]]") -> "Iterator[tuple[Item, bool]]":
        """Pass on frames from :attr:`first` on, remembering which begin a scene."""
        for index, (item, begins) in enumerate(marked, self.first):
            if begins:
                self._cuts.append(index)
            yield item, begins

    def write(self, frame: Frame) -> None:
        """Take the finished frames in order, from number :attr:`first` on.

        Raises:
            OutputError: it cannot be written, or another process has taken the job over.
            UsageError: its size or timestamp does not fit.
        """
        index, self._written = self.first + self._written, self._written + 1
        if index < self.resumed:
            return
        self._lock.beat()
        assert self._sink is not None
        with storing(self._output, self._needed):
            self._sink.write(frame)

    def finish(self) -> None:
        """Make the output under its name, and remove everything else.

        Raises:
            InputError: the input was changed in the meantime.
            OutputError: no frame was written; the output cannot be made.
        """
        if self._finished is not None:
            return
        with storing(self._output, self._needed):
            if self._log.ending is None:
                self._end()
            self._publish()

    @property
    def _log(self) -> Journal:
        assert self._journal is not None, "use the job as a context manager"
        return self._journal

    @property
    def _folder(self) -> JobFolder:
        return self._lock.folder

    def _look(self) -> None:
        order, begun = self._order, is_unfinished(self._folder)
        finished = load_finished(self._folder) if order.resume else None
        if finished is not None and finished.made(self._parent, self._place.name):
            self._take_finished(finished)
            if self._finished is not None:
                return
            begun = False  # what lies there is complete, and not ours to replace
        images = self._plan.form == "images"
        if not order.resume:
            if images:
                drop_frames(self._place, frames_in_journal(self._folder))
            self._folder.sweep()
        # Frames of an earlier run lie where they belong already.
        check_output(order.output, order.reader.info.path, order.overwrite or (begun and images))
        self._open_journal()
        self._check_chunks()
        self._prepare(self._open_sink())

    def _take_finished(self, finished: Finished) -> None:
        """An earlier run was stopped while it removed its files: do that; and maybe that is all."""
        self._clear()
        if not differences(finished.plan, adopt(self._plan, finished.plan).to_json()):
            self._finished = finished
            self.resumed = self.frames_done = finished.frames
            self.warnings = finished.warnings

    def _clear(self) -> None:
        strangers = self._folder.clear(keep_lock=True)
        if strangers:
            logger.warning(
                "%s: stays, as there are files in it that no job makes: %s",
                self._folder.path, ", ".join(strangers[:4]),
            )  # fmt: skip

    def _open_journal(self) -> None:
        stored = load_plan(self._folder)
        if stored is None:
            self._folder.sweep()
            self._plan = settle_threads(self._plan)
            stored = self._plan.to_json()
            save_plan(self._folder, stored)
            fault("plan-renamed")
        else:
            self._plan = adopt(self._plan, stored)
        check_form(self._output, stored, self._plan)
        changes = differences(stored, self._plan.to_json())
        if changes:
            raise InputError(
                f"{self._output}: an unfinished job is here, with another plan: {changes}. Give "
                "the same input and options (--dtype, if it was chosen by itself) to go on, or "
                "--restart (resume=False) to begin again."
            )
        self._journal = Journal(self._folder, digest_of(stored), self._plan.form == "images")

    def _check_chunks(self) -> None:
        """Keep the chunks that are as they were written, up to the first that is not."""
        log = self._log
        if self._plan.form == "images":
            count = keep_frames(self._place, log.chunks, self._order.overwrite)
        else:
            count = keep_numbered(self._folder, log.chunks)
        if count < len(log.chunks):
            logger.warning("%s: %s is damaged: made anew", self._output, log.chunks[count].file)
            if self._plan.form == "images":
                drop_frames(self._place, log.chunks[count:])
            log.cut(count)
        self._folder.sweep(PLAN, JOURNAL, *(chunk.file for chunk in log.chunks))

    def _open_sink(self) -> Sink:
        plan, done, commit = self._plan, len(self._log.chunks), self._commit
        source, size = self._source, (plan.width, plan.height)
        if plan.form == "images":
            overwrite = self._order.overwrite
            self._sink = ImageSink(self._place, source, size, done, overwrite, commit)
        else:
            recipe = Recipe(self._output, pin_threads(plan.encoder), source, size)
            self._sink = VideoSink(self._folder, recipe, plan.chunk_frames, done, commit)
        return self._sink

    def _prepare(self, sink: Sink) -> None:
        log, total = self._log, self._order.reader.info.frames
        if log.ending is None:
            sink.prepare()
        self._cuts = [cut for chunk in log.chunks for cut in chunk.cuts]
        self.resumed = self.frames_done = log.frames
        self.first = restart_frame(self.resumed, self._plan.windows, tuple(self._cuts))
        self.start = max(0, self.first - SCENE_MEMORY)
        if self.resumed:
            of = "" if total is None else f" of {total}"
            logger.info("%s: going on after %d%s frames", self._output, self.resumed, of)
        needed, free = self._needed(), self._folder.free_bytes()
        if needed is not None and needed > free:
            logger.warning(
                "%s: about %s more will be needed; there are %s free in %s",
                self._output, readable(needed), readable(free), self._output.parent,
            )  # fmt: skip

    def _commit(self, chunk: Chunk) -> None:
        self._lock.check()
        log, begin = self._log, self._log.frames
        cuts = tuple(cut for cut in self._cuts if begin <= cut < begin + chunk.frames)
        notes, run = self._order.notes(), self._lock.owner.token
        log.append(replace(chunk, cuts=cuts, warnings=notes, run=run))
        self.frames_done = log.frames
        fault("journaled")

    def _end(self) -> None:
        assert self._sink is not None
        self._sink.finish()
        if not self._log.frames:
            raise OutputError(f"{self._output}: no frame was written, so there is no video")
        if not self._input.is_unchanged():
            raise self._changed()
        self._lock.check()
        self._log.append(Ending(self._log.frames, self._order.reader.warnings))
        fault("ended")

    def _publish(self) -> None:
        log, sink = self._log, self._sink
        assert sink is not None and log.ending is not None
        made = self._assemble(sink, log.chunks)
        fault("assembled")
        runs = {chunk.run: chunk.warnings for chunk in log.chunks}
        about_frames = [line for lines in runs.values() for line in lines]
        lines = (*log.ending.warnings, *made.warnings, *about_frames, *self._order.notes())
        self.warnings = tuple(dict.fromkeys(lines))
        self._lock.check()
        finished = Finished.of(self._plan, log.frames, self.warnings, made.files)
        finished.save(self._folder)
        fault("noted")
        if made.name:
            self._give_name(made.name)
        fault("output-renamed")
        self._clear()
        self._finished = finished

    def _assemble(self, sink: Sink, chunks: list[Chunk]) -> Made:
        """Make the output, with the sound of the very input that the pictures come from."""
        source = self._source
        for _ in range(_ASSEMBLIES):
            if not self._input.is_unchanged():
                raise self._changed()
            before = look_at(source.path)
            made = sink.publish(chunks)
            # Where no sound is copied, the check before was enough.
            if source.kind == "images" or self._input.is_untouched_since(before):
                return made
        raise InputError(
            f"{source.path}: touched again and again while its sound is copied. Run the same "
            "command again when it is left alone; all frames are kept."
        )

    def _give_name(self, temporary: str) -> None:
        try:
            if not self._parent.is_at(self._place.parent):
                raise moved(self._output)
            self._folder.publish(temporary, self._parent, self._place.name, self._order.overwrite)
        except (FileExistsError, IsADirectoryError) as error:
            raise taken(self._output) from error
        self._parent.sync()

    def _leave(self) -> None:
        """Keep what is safe, if there is any; remove the rest; give the lock back in any case."""
        with self._stack:
            self._tidy()

    def _tidy(self) -> None:
        sink = self._sink
        if sink is not None:
            self._stack.callback(lambda: sink.abandon())  # once more, should this be interrupted
            sink.abandon()
            self._sink = None  # it holds a method of this job: a cycle, which keeps all in memory
        kept = self._journal is not None and bool(self._log.chunks) and self._finished is None
        if kept:
            total = self._order.reader.info.frames
            of = "" if total is None else f" of {total}"
            logger.info(
                "%s: %d%s frames are kept; run the same command again to go on",
                self._output, self._log.frames, of,
            )  # fmt: skip
        elif self._journal is not None or not is_unfinished(self._folder):
            with contextlib.suppress(OSError, OutputError):  # the next run tries again
                self._lock.check()  # nothing of a process that has taken the job over
                self._folder.clear(keep_lock=False)

    def _changed(self) -> InputError:
        return InputError(
            f"{self._order.reader.info.path}: the input was changed since the job began. Put the "
            "old one back, or pass --restart (resume=False) to begin again."
        )

    def _needed(self) -> int | None:
        plan, chunks = self._plan, self._journal.chunks if self._journal else ()
        size = (plan.width, plan.height)
        return estimate(size, self._order.reader.info.frames, plan.form == "images", chunks)
