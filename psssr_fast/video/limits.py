"""How large a media file may be in every respect, and what is refused before FFmpeg sees it.

A few kilobytes can ask for gigabytes: of pixels, streams, tags or frames. What a header declares is
checked before anything of that size is made.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from psssr_fast.errors import InputError, UsageError
from psssr_fast.files import open_input

_TAG_BOXES = (b"udta", b"meta")  # of MP4: titles, comments, cover pictures
_MAX_BOXES = 10_000  # looked at in one file


@dataclass(frozen=True)
class Limits:
    """What is read at most of one source; ``None`` is no limit.

    Attributes:
        max_pixels: of a frame, as stored. 8192 x 8192 holds every 8K format.
        max_streams: in a file, attachments included.
        max_frames: that are read; more are an error, not a shorter output.
        max_duration_s: seconds.
        max_metadata: bytes of tags and titles in a file.
        probe_bytes: that FFmpeg may read to find out what is in a file.
    """

    max_pixels: int = 8192 * 8192
    max_streams: int = 200
    max_frames: int | None = None
    max_duration_s: float | None = None
    max_metadata: int = 8 * 2**20
    probe_bytes: int = 5_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < 2**31:
                option = "--" + name.removesuffix("_s").replace("_", "-")
                raise UsageError(f"{option} must be above 0 and below 2147483648; got {value}")

    def container_options(self) -> dict[str, str]:
        """For FFmpeg's demuxers. One stream more than allowed, so that too many can be told."""
        return {"max_streams": str(self.max_streams + 1), "probesize": str(self.probe_bytes)}

    def decoder_options(self) -> dict[str, str]:
        """For FFmpeg's decoders; those that it opens while probing need them as well."""
        return {"max_pixels": str(self.max_pixels)}

    def check_size(self, path: Path, width: int, height: int) -> None:
        """Raise InputError if a frame of this size is too large."""
        if width * height > self.max_pixels:
            raise InputError(
                f"{path}: frames of {width}x{height} are too large: {width * height} pixels, and "
                f"at most {self.max_pixels} are read. Scale it down, or pass --max-pixels "
                f"{width * height} if you trust the file."
            )

    def check_png(self, path: Path) -> None:
        """Raise InputError if a PNG file says that it is too large; other files pass."""
        with open_input(path) as file:
            start = file.read(24)
        if len(start) == 24 and start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR":
            self.check_size(path, *struct.unpack(">II", start[16:]))

    def check_streams(self, path: Path, count: int) -> None:
        """Raise InputError if a file has too many streams."""
        if count > self.max_streams:
            raise InputError(
                f"{path}: more than {self.max_streams} streams, which are not read. Keep those "
                "you need: ffmpeg -i INPUT -map 0:v:0 -map 0:a? -c copy OUTPUT.mkv"
            )

    def check_metadata(self, path: Path, size: int) -> None:
        """Raise InputError if a file's tags take too many bytes."""
        if size > self.max_metadata:
            raise InputError(
                f"{path}: {size} bytes of titles and tags, and at most {self.max_metadata} are "
                "read. Leave them out: ffmpeg -i INPUT -map_metadata -1 -c copy OUTPUT.mkv"
            )

    def check_frames(self, path: Path, frames: int | None) -> None:
        """Raise InputError if there are too many frames; ``None`` is an unknown number."""
        if self.max_frames is not None and frames is not None and frames > self.max_frames:
            raise InputError(
                f"{path}: {frames} frames or more, and at most {self.max_frames} are read. Cut it, "
                "or raise --max-frames."
            )

    def check_duration(self, path: Path, seconds: float | None) -> None:
        """Raise InputError if it lasts too long; ``None`` is an unknown length."""
        if (
            self.max_duration_s is not None
            and seconds is not None
            and seconds > self.max_duration_s
        ):
            raise InputError(
                f"{path}: {seconds:g} s long, and at most {self.max_duration_s:g} s are read. Cut "
                "it, or raise --max-duration."
            )


DEFAULT_LIMITS = Limits()
# For what a reader with the user's limits has accepted already.
UNLIMITED = Limits(max_pixels=2**31 - 1, max_streams=2**31 - 2, max_metadata=2**31 - 1)


def texts_size(tables: Iterable[Mapping[str, str]]) -> int:
    """Characters in some tables of tags."""
    return sum(len(key) + len(value) for table in tables for key, value in table.items())


def declared_metadata(path: Path) -> int:
    """Bytes of tags that an MP4 or AVI declares; 0 for other kinds.

    FFmpeg reads these whole, several times over, before anybody can ask how many there are. Its
    Matroska demuxer has limits of its own.
    """
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(12)
        if start[:4] == b"RIFF":
            return _riff_tags(file, size)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _box_tags(file, 0, size, (b"moov", b"trak"))
    return 0


def _box_tags(file: BinaryIO, begin: int, end: int, parents: tuple[bytes, ...]) -> int:
    total = 0
    for kind, body, stop in _boxes(file, begin, end):
        if kind in _TAG_BOXES:
            total += stop - body
        elif kind in parents[:1]:
            total += _box_tags(file, body, stop, parents[1:])
    return total


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of the content of the boxes of an MP4 (ISO/IEC 14496-12, 4.2)."""
    position = begin
    for _ in range(_MAX_BOXES):
        if position + 8 > end:
            return
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        body = position + 8
        if length == 1:
            length, body = int.from_bytes(file.read(8)), position + 16
        stop = end if length == 0 else min(position + length, end)
        if stop < body:
            return
        yield kind, body, stop
        position = stop


def _riff_tags(file: BinaryIO, end: int) -> int:
    total, position = 0, 12
    for _ in range(_MAX_BOXES):
        if position + 12 > end:
            break
        file.seek(position)
        kind, length, form = struct.unpack("<4sI4s", file.read(12))
        stop = min(position + 8 + length, end)
        if kind == b"LIST" and form == b"INFO":
            total += stop - position
        position = stop + length % 2
    return total
