"""Counting the frames that a Matroska or WebM file holds, to notice those that are lost on the way.

Matroska has no list of its frames. Where a damaged size or name makes no sense, FFmpeg looks for
the next one that does, and says nothing of what lies between.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from psssr_fast.files import open_input

EBML_HEADER = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_CLUSTER_NAME = b"\x1f\x43\xb6\x75"
_NEW_FILE, _NEW_SEGMENT = 0x1A45DFA3, 0x18538067  # a recording joined to the one before
_CLUSTER, _TRACKS, _TRACK, _NUMBER, _TYPE = 0x1F43B675, 0x1654AE6B, 0xAE, 0xD7, 0x83
_SIMPLE_BLOCK, _GROUP, _BLOCK = 0xA3, 0xA0, 0xA1
_VIDEO = 1  # of track types
_LACING = 0x06  # flags of a block that holds several frames

# All elements that RFC 9559 and the formats before it have at a place, and those of every place.
_ANYWHERE = frozenset({0xEC, 0xBF})  # Void, CRC-32
_IN_SEGMENT = _ANYWHERE | {
    0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367,
}  # fmt: skip
_IN_CLUSTER = _ANYWHERE | {0xE7, 0x5854, 0xA7, 0xAB, _SIMPLE_BLOCK, _GROUP, 0xAF}
_IN_GROUP = _ANYWHERE | {
    _BLOCK, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8,
}  # fmt: skip
# Bytes at most of those that hold one number; a block whose name was damaged is longer.
_LONGEST = {0xBF: 4, 0xE7: 8, 0xA7: 8, 0xAB: 8, 0x9B: 8, 0xFA: 8, 0xFB: 8, 0xFD: 8, 0x75A2: 8}


@dataclass(frozen=True)
class Contents:
    """What a file holds of one video track.

    Attributes:
        frames: that are not empty; up to ``broken`` if that is set.
        broken: byte position of the first element that makes no sense; ``None`` if all do.
        odd: byte position of the first thing that readers are to skip: an element that nobody
            knows, or what follows a recording whose writer left its size open.
    """

    frames: int
    broken: int | None = None
    odd: int | None = None


def count_frames(
    path: Path, index: int, beat: Callable[[], None] = lambda: None
) -> Contents | None:
    """Count the frames of video track ``index`` (from 0) without decoding them.

    Only names, sizes and the first bytes of blocks are read; ``beat`` is called for each cluster.
    Returns ``None`` if the file is not Matroska, or does not describe so many video tracks.
    """
    with open_input(path) as file:
        segment = _segment(file)
        if segment is None:
            return None
        begin, end = segment
        counter, broken = _Counter(file, index, beat, end is None), None
        try:
            counter.read_segment(begin, os.fstat(file.fileno()).st_size if end is None else end)
        except _BrokenError as error:
            if end is None and not _has_cluster(file, error.position):
                counter.skip(error.position)  # behind the last frame of a recording
            else:
                broken = error.position
        return None if counter.track is None else Contents(counter.frames, broken, counter.odd)


def _has_cluster(file: BinaryIO, position: int) -> bool:
    """Whether frames may follow, as the name of a cluster does."""
    file.seek(position)
    before = b""
    while chunk := file.read(2**20):
        if _CLUSTER_NAME in before + chunk:
            return True
        before = chunk[-3:]
    return False


def missing_from_matroska(file: BinaryIO, size: int) -> int:
    """How many bytes a file of ``size`` bytes is shorter than its segment; 0 if unknown."""
    segment = _segment(file)
    return 0 if segment is None or segment[1] is None else max(0, segment[1] - size)


class _BrokenError(Exception):
    """An element makes no sense."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


@dataclass(frozen=True)
class _Element:
    name: int
    position: int
    body: int
    end: int | None  # None: its writer did not know


class _Counter:
    """Walks through a segment."""

    def __init__(
        self, file: BinaryIO, index: int, beat: Callable[[], None], open_ended: bool
    ) -> None:
        self.frames = 0
        self.track: int | None = None  # the number by which blocks call the track
        self.odd: int | None = None
        self._file, self._index, self._beat = file, index, beat
        # Another recording may follow only one that does not say where it ends.
        new = {_NEW_FILE, _NEW_SEGMENT} if open_ended else set[int]()
        self._in_segment = _IN_SEGMENT | new
        self._numbers: set[int] = set()

    def read_segment(self, begin: int, end: int) -> None:
        position = begin
        while position < end:
            element = self._element(position, end, self._in_segment)
            if element.name == _CLUSTER:
                self._beat()
                position = self._read_cluster(element, end)
                continue
            if element.name == _NEW_SEGMENT:
                position = element.body
                continue
            if element.end is None:  # only a segment and a cluster may leave it open
                raise _BrokenError(position)
            if element.name == _TRACKS and not self._numbers:
                self._read_tracks(element.body, element.end)
            position = element.end

    def _read_tracks(self, position: int, end: int) -> None:
        videos = []
        while position < end:
            track = self._element(position, end)
            number = kind = 0
            inside = track.body
            position = _closed(track)
            while track.name == _TRACK and inside < position:
                field = self._element(inside, position)
                inside = _closed(field)
                if field.name in (_NUMBER, _TYPE):
                    self._file.seek(field.body)
                    value = int.from_bytes(self._file.read(inside - field.body))
                    number, kind = (value, kind) if field.name == _NUMBER else (number, value)
            if track.name == _TRACK:
                self._numbers.add(number)
                videos += [number] if kind == _VIDEO else []
        if self._index < len(videos):
            self.track = videos[self._index]

    def _read_cluster(self, cluster: _Element, end: int) -> int:
        """Count the frames of a cluster; returns where the next element of the segment is."""
        position, stop = cluster.body, end if cluster.end is None else cluster.end
        while position < stop:
            names = _IN_CLUSTER if cluster.end is not None else _IN_CLUSTER | self._in_segment
            element = self._element(position, stop, names)
            if cluster.end is None and element.name in self._in_segment - _ANYWHERE:
                return position  # a cluster of unknown size ends where the next one begins
            position = _closed(element)
            if element.name == _SIMPLE_BLOCK:
                self._read_block(element)
            elif element.name not in names:
                self._count_renamed(element)
            inside = element.body
            while element.name == _GROUP and inside < position:
                part = self._element(inside, position)  # together they must fill the group
                if part.name not in _IN_GROUP:
                    self.skip(part.position)
                    self._count_renamed(part)
                if part.name == _BLOCK:
                    self._read_block(part)
                inside = _closed(part)
        return stop

    def _count_renamed(self, element: _Element) -> None:
        """Count an element of unknown name that begins like a block: its name may be damaged."""
        self._file.seek(element.body)
        number = _number(self._file)
        if number is not None and number == self.track and _closed(element) - element.body > 4:
            self.frames += 1

    def _read_block(self, block: _Element) -> None:
        self._file.seek(block.body)
        number = _number(self._file)
        head = self._file.read(4)  # time, flags, and with lacing the number of frames less one
        inside = _closed(block) - self._file.tell() + len(head)
        if number not in self._numbers or inside < 3:
            raise _BrokenError(block.position)
        if number == self.track and inside > 3:
            self.frames += head[3] + 1 if head[2] & _LACING else 1

    def _element(self, position: int, end: int, names: frozenset[int] | None = None) -> _Element:
        """Read the name and the size of the element at ``position``, which is within ``end``."""
        position = self._behind_zeros(position, end, names)
        self._file.seek(position)
        first = self._file.read(1)
        length = 9 - first[0].bit_length() if first and first[0] else 9
        if length > 4:
            raise _BrokenError(position)
        name = int.from_bytes(first + self._file.read(length - 1))
        size = _number(self._file)
        body = self._file.tell()
        stop = None if size is None else body + size
        if body > end or (stop is not None and stop > min(end, body + _LONGEST.get(name, end))):
            raise _BrokenError(position)
        if names is not None and name not in names:
            if stop is None or not self._goes_on(stop, end, names):
                raise _BrokenError(position)
            self.skip(position)
        return _Element(name, position, body, stop)

    def skip(self, position: int) -> None:
        """Note that something was skipped."""
        self.odd = position if self.odd is None else self.odd

    def _behind_zeros(self, position: int, end: int, names: frozenset[int] | None) -> int:
        """Return where padding ends: zeros, and then a known element. A hole is no padding."""
        self._file.seek(position)
        first = self._file.read(1)
        if names is None or first != b"\0":
            return position
        after = position + 1
        while after < end and (chunk := self._file.read(min(2**16, end - after))):
            rest = chunk.lstrip(b"\0")
            after += len(chunk) - len(rest)
            if rest:
                break
        if after >= end or not self._goes_on(after, end, names):
            raise _BrokenError(position)
        self.skip(position)
        return after

    def _goes_on(self, position: int, end: int, names: frozenset[int]) -> bool:
        """Whether a known element, or the end, is where an unknown one says that it ends."""
        self._file.seek(position)
        start = self._file.read(4)
        known = any(int.from_bytes(start[:length]) in names for length in (1, 2, 4))
        return position == end or (position < end and known)


def _closed(element: _Element) -> int:
    """Where an element ends that must say so."""
    if element.end is None:
        raise _BrokenError(element.position)
    return element.end


def _segment(file: BinaryIO) -> tuple[int, int | None] | None:
    """Where the content of the segment begins and ends, if the file is Matroska and says so."""
    file.seek(0)
    if file.read(4) != EBML_HEADER:
        return None
    header = _number(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    length = _number(file)
    begin = file.tell()
    return begin, None if length is None else begin + length


def _number(file: BinaryIO) -> int | None:
    """Read a variable-length number (RFC 8794, section 4); ``None`` if it says "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1))
    mask = (1 << 7 * length) - 1
    return None if value & mask == mask else value & mask
