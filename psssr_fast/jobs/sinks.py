"""Where the frames of a job go: into chunks of a video, or into PNG files of their own."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from psssr_fast.errors import OutputError
from psssr_fast.faults import fault
from psssr_fast.jobs.assemble import assemble, try_output
from psssr_fast.jobs.chunks import ChunkWriter, Recipe
from psssr_fast.jobs.files import readable
from psssr_fast.jobs.finished import MadeFile
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.journal import Chunk
from psssr_fast.video import Frame, VideoInfo
from psssr_fast.video.image_writer import ImageWriter

Commit = Callable[[Chunk], None]


@dataclass(frozen=True)
class Made:
    """A finished output.

    Attributes:
        files: one video, or the PNG frames.
        warnings: what could not be carried over, one line each.
        name: temporary name of a video in the folder of the job; empty for PNG frames, which lie
            where they belong.
    """

    files: tuple[MadeFile, ...]
    warnings: tuple[str, ...]
    name: str = ""


class Sink(Protocol):
    """What a job needs of it."""

    def prepare(self) -> None:
        """Raise what would make the output impossible, before the work."""

    def write(self, frame: Frame) -> None:
        """Take the next frame; whenever a chunk is safe, commit it."""

    def finish(self) -> None:
        """Commit what is left."""

    def publish(self, chunks: list[Chunk]) -> Made:
        """Make the output of all chunks."""

    def abandon(self) -> None:
        """Drop the chunk that is not finished, and free what is open."""


class VideoSink:
    """Chunks of ``chunk_frames`` frames, put together at the end.

    Args:
        folder: of the job.
        recipe: how chunks are made.
        chunk_frames: frames of a chunk.
        done: how many chunks are there.
        commit: is given each chunk.
    """

    def __init__(
        self, folder: JobFolder, recipe: Recipe, chunk_frames: int, done: int, commit: Commit
    ) -> None:
        self._folder, self._recipe = folder, recipe
        self._chunk_frames, self._next, self._commit = chunk_frames, done, commit
        self._writer: ChunkWriter | None = None

    def prepare(self) -> None:
        try_output(self._recipe, self._folder)

    def write(self, frame: Frame) -> None:
        if self._writer is None:
            self._writer = ChunkWriter(self._folder, self._next, self._recipe)
        self._writer.write(frame)
        if self._writer.frames == self._chunk_frames:
            self.finish()

    def finish(self) -> None:
        if self._writer is None:
            return
        chunk = self._writer.finish()
        self._writer, self._next = None, self._next + 1
        self._commit(chunk)

    def publish(self, chunks: list[Chunk]) -> Made:
        needed = sum(chunk.bytes for chunk in chunks)
        if self._folder.free_bytes() < needed:
            raise OutputError(
                f"{self._recipe.output}: all frames are ready, but {readable(needed)} are needed "
                f"in {self._recipe.output.parent}. Free some space and run the same command again."
            )
        name, made, warnings = assemble(self._recipe, chunks, self._folder)
        return Made((made,), warnings, name)

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


class ImageSink:
    """PNG files, which are chunks of one frame that already lie where they belong.

    A frame is first on the disk, then in the journal, and then gets its name. So a file that has
    the name of a frame and is not in the journal is somebody else's.

    Args:
        folder: for the frames.
        source: the input, whose colours go into files of 16 bits.
        size: of them: width, height.
        done: how many are there.
        overwrite: files of the same names may be replaced.
        commit: is given each frame.
    """

    def __init__(
        self,
        folder: Path,
        source: VideoInfo,
        size: tuple[int, int],
        done: int,
        overwrite: bool,
        commit: Commit,
    ) -> None:
        self._next, self._commit = done, commit
        self._writer = ImageWriter(folder, *size, overwrite, source)
        self._open = ExitStack()

    def prepare(self) -> None:
        self._open.enter_context(self._writer)

    def write(self, frame: Frame) -> None:
        def note(sha256: str, size: int) -> None:
            fault("image-written")
            end = frame.pts + (frame.duration or 1)
            index, self._next = self._next, self._next + 1
            self._commit(Chunk(index, frame.name, sha256, size, 1, (frame.pts,), end))

        self._writer.write(frame, note)
        fault("image-renamed")

    def finish(self) -> None:
        """Nothing is left: every frame was committed when it was written."""

    def publish(self, chunks: list[Chunk]) -> Made:
        self._writer.check_place()
        return Made(tuple(map(MadeFile.of_frame, chunks)), self._writer.warnings)

    def abandon(self) -> None:
        """Close the folder; a frame is there completely or not at all."""
        self._open.close()
