"""Chunks into one video, with everything else of the source beside them."""

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

from av.packet import Packet
from av.video.stream import VideoStream

from psssr_fast.faults import fault
from psssr_fast.jobs.chunks import ChunkReader, Recipe, Stored, describe_encoder
from psssr_fast.jobs.finished import MadeFile
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.journal import Chunk
from psssr_fast.video.muxer import Output


def try_output(recipe: Recipe, folder: JobFolder) -> None:
    """Open and close an output without frames, so that its errors come before the work.

    Raises:
        OutputError, UsageError, av.FFmpegError: see :class:`psssr_fast.video.muxer.Output`.
    """
    with _Temporary(folder, "try") as file:
        output = Output(recipe.output, file.path, recipe.source, recipe.size, recipe.settings)
        try:
            output.open_encoder()
            output.write_header()
        finally:
            output.discard()


def assemble(
    recipe: Recipe, chunks: list[Chunk], folder: JobFolder
) -> tuple[str, MadeFile, tuple[str, ...]]:
    """Write the video, under a temporary name in the folder of the job.

    Args:
        recipe: how the chunks were made.
        chunks: all of them, in order.
        folder: where they are.

    Returns:
        The temporary name; what names the file's content; and what could not be carried over, one
        line each.

    Raises:
        OutputError: a chunk is damaged, or the output cannot be made.
        OSError, av.FFmpegError: it cannot be written.
    """
    with _Temporary(folder, "output") as file:
        output = Output(recipe.output, file.path, recipe.source, recipe.size, recipe.settings)
        try:
            output.open_encoder()
            output.write_header()
            _mux(output, recipe, _packets(recipe, chunks, folder, output), chunks)
            warnings = output.finish()
        except BaseException:
            output.discard()
            raise
        os.fsync(file.descriptor)
        made = MadeFile.of_video(file.descriptor)
        file.is_kept = True
        return file.name, made, warnings


class _Temporary:
    """A new file in the folder of a job, removed at the end unless it is kept. A context manager.

    Attributes:
        name: of the file.
        descriptor: to reach it whatever becomes of its name.
        path: by which FFmpeg opens the same file: through the descriptor where the system can, so
            that it follows no link.
        is_kept: leave the file there.
    """

    def __init__(self, folder: JobFolder, stem: str) -> None:
        self.name, self.is_kept = f"{stem}.partial-{os.getpid()}", False
        self._folder = folder
        folder.unlink(self.name)
        self.descriptor = folder.create(self.name)
        link = Path(f"/proc/self/fd/{self.descriptor}")
        self.path = link if link.exists() else folder.path / self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_kept:
            os.close(self.descriptor)
            return
        with contextlib.suppress(OSError):  # it is of no use, and an error may be on its way
            os.close(self.descriptor)
        with contextlib.suppress(OSError):
            self._folder.unlink(self.name)


def _packets(
    recipe: Recipe, chunks: list[Chunk], folder: JobFolder, output: Output
) -> Iterator[Stored]:
    encoder = describe_encoder(output.stream.codec_context)
    for chunk in chunks:
        fault("assembling")
        yield from ChunkReader(folder, chunk, encoder, recipe.output)


def _mux(output: Output, recipe: Recipe, packets: Iterator[Stored], chunks: list[Chunk]) -> None:
    shown = (pts for chunk in chunks for pts in chunk.pts)
    times = decoding_times(shown, max(chunk.delay for chunk in chunks))
    held: Packet[VideoStream] | None = None
    for stored in packets:
        if held is not None:
            _mux_one(output, held)
        held = stored.to_packet()
        held.stream, held.time_base = output.stream, recipe.source.time_base
        held.dts = next(times)
    assert held is not None and held.pts is not None
    # MP4 derives the end from the packet encoded last, which may be a B-frame.
    held.duration = chunks[-1].end - held.pts
    _mux_one(output, held)


def _mux_one(output: Output, packet: "Packet[VideoStream]") -> None:
    if output.copier is not None and packet.dts is not None:
        output.copier.copy_until(packet.dts * packet.time_base)
    output.container.mux(packet)


def decoding_times(shown: Iterable[int], delay: int) -> Iterator[int]:
    """When packets are decoded: growing, and never later than they are shown.

    Args:
        shown: when frames are shown, in order, ticks.
        delay: by how many frames a packet may come later than it is shown, at most.

    Yields:
        As many times as there are frames: those of ``delay`` frames before, and at the beginning
        the first frames' own, moved back by as much as the frame after ``delay`` comes later.
    """
    source = iter(shown)
    waiting = deque(islice(source, delay + 1))
    if not waiting:
        return
    moved = waiting[-1] - waiting[0]
    yield from [pts - moved for pts in islice(waiting, len(waiting) - 1)]
    yield waiting.popleft()
    for pts in source:
        waiting.append(pts)
        yield waiting.popleft()
