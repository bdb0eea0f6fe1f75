"""Chunks of an output video: compressed packets in a file, kept until all are there.

A chunk begins with a key frame and refers to no other, so chunks can be made in any order and put
together by copying. Packets keep the integer timestamps of the input; when they are decoded follows
from all timestamps together and is decided when chunks are put together.
"""

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from av.packet import Packet, PacketSideData, PktSideDataT
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from psssr_fast.errors import OutputError
from psssr_fast.faults import fault
from psssr_fast.jobs.files import write_all
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.journal import Chunk, name_of
from psssr_fast.video import EncoderSettings, Frame, VideoInfo
from psssr_fast.video.frame_encoder import FrameEncoder, make_context

_MAGIC = b"psssr chunk 1\n"
_PACKET = struct.Struct(">qqIBB")  # pts, duration, bytes, is it a key frame, pieces of side data
_SIDE_DATA = struct.Struct(">BI")  # kind, bytes
_KINDS = get_args(PktSideDataT)
_OF_NO_USE = "quality_stats"  # of the encoder, for whoever tunes it


@dataclass(frozen=True)
class Stored:
    """One packet of a chunk."""

    pts: int
    duration: int
    is_key: bool
    content: bytes
    side_data: tuple[tuple[int, bytes], ...] = ()

    def to_packet(self) -> "Packet[VideoStream]":
        """As the muxer takes it, but for the stream and the time of decoding."""
        packet: Packet[VideoStream] = Packet(len(self.content))  # type: ignore[assignment]
        packet.update(self.content)
        packet.pts, packet.duration, packet.is_keyframe = self.pts, self.duration, self.is_key
        for kind, content in self.side_data:
            data = PacketSideData(kind, len(content))  # type: ignore[call-arg]
            data.update(content)
            data.to_packet(packet)  # type: ignore[arg-type]
        return packet


def describe_encoder(context: VideoCodecContext) -> bytes:
    """What all chunks and the output must have in common: the hash of the parameter sets."""
    return hashlib.sha256(context.extradata or b"").digest()


@dataclass(frozen=True)
class Recipe:
    """How all chunks of a video are made.

    Attributes:
        output: the video.
        settings: settled encoder settings, threads included.
        source: the input.
        size: of the frames: width, height.
    """

    output: Path
    settings: EncoderSettings
    source: VideoInfo
    size: tuple[int, int]


def pin_threads(settings: EncoderSettings) -> EncoderSettings:
    """Settings under which an encoder divides its work as their ``threads`` say, on any machine."""
    if settings.codec != "libx265":
        return settings
    # It takes no notice of FFmpeg's number of threads.
    given = settings.codec_options()["x265-params"]
    at_once = 1 + min(settings.threads // 4, 3)
    value = f"pools={settings.threads}:frame-threads={at_once}:{given}"
    return replace(settings, options=(*settings.options, ("x265-params", value)))


class ChunkWriter:
    """Encodes the frames of one chunk into a file of its own.

    Args:
        folder: of the job.
        index: of the chunk.
        recipe: how it is made.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: JobFolder, index: int, recipe: Recipe) -> None:
        self._folder, self._name = folder, name_of(index)
        self._temporary = f"{self._name}.partial-{os.getpid()}"
        self._index, self._output = index, recipe.output
        context = make_context(recipe.settings, recipe.source, recipe.size, recipe.output)
        self._encoder = FrameEncoder(context, recipe.settings, recipe.source, recipe.size)
        self._shown: list[int] = []  # pts of frames, in order
        self._stored: list[int] = []  # pts of packets, in order
        self._hash, self._bytes = hashlib.sha256(), 0
        folder.unlink(self._temporary)
        self._file = io.FileIO(folder.create(self._temporary), "w")
        self._write(_MAGIC + describe_encoder(context))

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return len(self._shown)

    def write(self, frame: Frame) -> None:
        """Encode a frame.

        Raises:
            OSError, av.FFmpegError: it cannot be written.
            UsageError: its size or timestamp does not fit.
        """
        packets = self._encoder.encode(frame)
        self._shown.append(frame.pts)
        self._store(packets)

    def finish(self) -> Chunk:
        """Complete the file, on the disk and under its name.

        Raises:
            OSError, av.FFmpegError: it cannot be written.
            OutputError: the encoder lost frames.
        """
        self._store(self._encoder.finish())
        if sorted(self._stored) != self._shown:
            raise OutputError(
                f"{self._output}: the encoder gave {len(self._stored)} packets for "
                f"{len(self._shown)} frames, or with other times. Choose another encoder."
            )
        fault("chunk-encoded")
        os.fsync(self._file.fileno())
        self._file.close()
        fault("chunk-synced")
        self._folder.replace(self._temporary, self._name)
        self._folder.sync()
        fault("chunk-renamed")
        rank = {pts: index for index, pts in enumerate(self._shown)}
        return Chunk(
            index=self._index,
            file=self._name,
            sha256=self._hash.hexdigest(),
            bytes=self._bytes,
            frames=len(self._shown),
            pts=tuple(self._shown),
            end=self._encoder.end,
            delay=max(index - rank[pts] for index, pts in enumerate(self._stored)),
        )

    def abandon(self) -> None:
        """Drop the chunk; a broken disk cannot hinder it, as an error is on its way already."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._folder.unlink(self._temporary)

    def _store(self, packets: "Sequence[Packet[VideoStream]]") -> None:
        for packet in packets:
            assert packet.pts is not None, "an encoder that is given times gives them back"
            self._stored.append(packet.pts)
            beside = [
                (_KINDS.index(data.data_type), bytes(data))
                for data in packet.iter_sidedata()
                if data.data_type != _OF_NO_USE
            ]
            parts = [
                _PACKET.pack(
                    packet.pts, packet.duration or 0, packet.size, packet.is_keyframe, len(beside)
                )
            ]
            for kind, content in beside:
                parts += [_SIDE_DATA.pack(kind, len(content)), content]
            self._write(b"".join((*parts, bytes(packet))))

    def _write(self, content: bytes) -> None:
        write_all(self._file, content)
        self._hash.update(content)
        self._bytes += len(content)


class ChunkReader:
    """The packets of a chunk, read back; its hash is compared when all were read.

    Args:
        folder: of the job.
        chunk: what the journal says of it.
        encoder: what :func:`describe_encoder` says of the output's encoder.
        output: for messages.
    """

    def __init__(self, folder: JobFolder, chunk: Chunk, encoder: bytes, output: Path) -> None:
        self._folder, self._chunk, self._encoder, self._output = folder, chunk, encoder, output

    def __iter__(self) -> Iterator[Stored]:
        """Packets in the order of decoding.

        Raises:
            OutputError: the file is not what was written.
        """
        total, times = hashlib.sha256(), []
        try:
            with os.fdopen(self._folder.open_own(self._chunk.file), "rb") as file:

                def take(count: int) -> bytes:
                    content = file.read(count)
                    total.update(content)
                    if len(content) < count:
                        raise self._damaged()
                    return content

                if take(len(_MAGIC)) != _MAGIC or take(32) != self._encoder:
                    # Whole, but of an encoder that says something else of itself, as x265 does on
                    # another processor: without the file, the next run begins again from here.
                    self._folder.unlink(self._chunk.file)
                    raise self._damaged()
                for _ in range(self._chunk.frames):
                    packet = _take_packet(take)
                    times.append(packet.pts)
                    yield packet
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise self._damaged() from error
        if total.hexdigest() != self._chunk.sha256 or tuple(sorted(times)) != self._chunk.pts:
            raise self._damaged()

    def _damaged(self) -> OutputError:
        return OutputError(
            f"{self._output}: {self._chunk.file} of its unfinished job is not as it was written. "
            "Run the same command again; the chunk will be made anew."
        )


def _take_packet(take: Callable[[int], bytes]) -> Stored:
    pts, duration, size, is_key, pieces = _PACKET.unpack(take(_PACKET.size))
    beside = []
    for _ in range(pieces):
        kind, length = _SIDE_DATA.unpack(take(_SIDE_DATA.size))
        beside.append((kind, take(length)))
    return Stored(pts, duration, bool(is_key), take(size), tuple(beside))
