"""Where the frames of a job go: into chunks of a video, or into PNG files of their own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from psssr_fast.errors import OutputError
from psssr_fast.faults import fault
from psssr_fast.jobs.assemble import assemble, try_output
from psssr_fast.jobs.chunks import ChunkWriter, Recipe
from psssr_fast.jobs.files import readable, sha256_of, sync_file, sync_folder
from psssr_fast.jobs.journal import Chunk
from psssr_fast.video import Frame, VideoInfo
from psssr_fast.video.images import ImageWriter

Commit = Callable[[Chunk], None]


class Sink(Protocol):
    """What a job needs of it."""

    def prepare(self) -> None:
        """Raise what would make the output impossible, before the work."""

    def write(self, frame: Frame) -> None:
        """Take the next frame; whenever a chunk is safe, commit it."""

    def finish(self) -> None:
        """Commit what is left."""

    def publish(self, chunks: list[Chunk]) -> tuple[Path | None, tuple[str, ...]]:
        """Make the output of all chunks: a file to be renamed, if it is one, and warnings."""

    def abandon(self) -> None:
        """Drop the chunk that is not finished."""


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
        self, folder: Path, recipe: Recipe, chunk_frames: int, done: int, commit: Commit
    ) -> None:
        self._folder, self._recipe = folder, recipe
        self._chunk_frames, self._next, self._commit = chunk_frames, done, commit
        self._writer: ChunkWriter | None = None

    def prepare(self) -> None:
        try_output(self._recipe, self._folder / f"try.partial-{os.getpid()}")

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

    def publish(self, chunks: list[Chunk]) -> tuple[Path | None, tuple[str, ...]]:
        needed = sum(chunk.bytes for chunk in chunks)
        place = os.statvfs(self._folder) if hasattr(os, "statvfs") else None
        if place is not None and place.f_bavail * place.f_frsize < needed:
            raise OutputError(
                f"{self._recipe.output}: all frames are ready, but {readable(needed)} are needed "
                f"in {self._recipe.output.parent}. Free some space and run the same command again."
            )
        temporary = self._folder / f"output.partial-{os.getpid()}"
        return temporary, assemble(self._recipe, chunks, self._folder, temporary)

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


class ImageSink:
    """PNG files, which are chunks of one frame that already lie where they belong.

    Args:
        folder: for the frames.
        source: the input, whose colours go into files of 16 bits.
        size: of them: width, height.
        done: how many are there.
        may_replace: files of the same names may be replaced.
        commit: is given each frame.
    """

    def __init__(
        self,
        folder: Path,
        source: VideoInfo,
        size: tuple[int, int],
        done: int,
        may_replace: bool,
        commit: Commit,
    ) -> None:
        self._folder, self._next, self._commit = folder, done, commit
        self._writer = ImageWriter(folder, *size, overwrite=may_replace, source=source)

    def prepare(self) -> None:
        with self._writer:
            pass
        for stray in self._folder.glob(".*.partial-*.png"):
            stray.unlink(missing_ok=True)

    def write(self, frame: Frame) -> None:
        self._writer.write(frame)
        path = self._folder / frame.name
        sync_file(path)
        sync_folder(self._folder)
        fault("image-written")
        end = frame.pts + (frame.duration or 1)
        index, self._next = self._next, self._next + 1
        digest, size = sha256_of(path), path.stat().st_size
        self._commit(Chunk(index, frame.name, digest, size, 1, (frame.pts,), end))

    def finish(self) -> None:
        """Nothing is left: every frame was committed when it was written."""

    def publish(self, chunks: list[Chunk]) -> tuple[Path | None, tuple[str, ...]]:
        return None, self._writer.warnings

    def abandon(self) -> None:
        """Nothing to drop: a frame is there completely or not at all."""
