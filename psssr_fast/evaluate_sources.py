"""Where the frames to be measured come from: videos, and folders of pictures of any usual kind."""

import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from psssr_fast.errors import InputError, UsageError
from psssr_fast.video import open_reader, probe
from psssr_fast.video.deep import to_8_bits

Pixels = NDArray[np.uint8]
# Besides PNG, which the video reader takes.
_PICTURES = frozenset({".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Span:
    """A part of a clip: frames ``start`` to ``stop``, the latter not included.

    Attributes:
        start, stop: from 0; negative ones count from the end; ``None`` is the end itself.
    """

    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Read ``N`` (the first N frames), ``START:STOP``, ``START:``, or ``-N:`` (the last N).

        Raises:
            UsageError: it is none of these.
        """
        match = re.fullmatch(r"(-?\d{1,9})?(:)?(-?\d{1,9})?", text)
        if match is not None and match[2]:
            return cls(int(match[1] or 0), None if match[3] is None else int(match[3]))
        if match is not None and match[1] and not match[3] and int(match[1]) > 0:
            return cls(0, int(match[1]))
        raise UsageError(f"frames must be N, START:STOP, START: or -N:; got {text!r}")

    def within(self, count: int | None, path: Path) -> tuple[int, int | None]:
        """Both ends as numbers from 0.

        Raises:
            UsageError: an end counts from the back, and the number of frames is not known.
        """
        if count is not None:
            start, stop, _ = slice(self.start, self.stop).indices(count)
            return start, stop
        if self.start < 0 or (self.stop is not None and self.stop < 0):
            raise UsageError(f"{path} does not say how many frames it has; count from the front")
        return self.start, self.stop


WHOLE = Span()


@dataclass(frozen=True)
class Pictures:
    """Some frames of a video or folder.

    Attributes:
        path: of it.
        height, width: of its frames.
        count: how many there will be, if that can be told.
        start, stop: which ones.
        files: of a folder without PNG frames; empty for anything else.
    """

    path: Path
    height: int
    width: int
    count: int | None
    start: int
    stop: int | None
    files: tuple[Path, ...] = ()

    def frames(self) -> Generator[Pixels, None, None]:
        """The frames, uint8 ``[height, width, 3]``.

        Raises:
            InputError: one cannot be read, or has another size.
        """
        if self.files:
            for file in self.files[self.start : self.stop]:
                picture = read_picture(file)
                if picture.shape[:2] != (self.height, self.width):
                    raise InputError(
                        f"{file} is {picture.shape[1]}x{picture.shape[0]}, those before it "
                        f"{self.width}x{self.height}; all must have one size"
                    )
                yield picture
            return
        with open_reader(self.path) as reader:
            for frame in islice(reader, self.start, self.stop):
                yield to_8_bits(frame.pixels)


def open_pictures(path: Path, span: Span) -> Pictures:
    """Look at a video, a folder of PNG frames, or a folder of other pictures in natural order.

    Raises:
        InputError: it cannot be read, or holds no picture.
        UsageError: the span cannot be told.
    """
    files = _other_pictures(path)
    if files:
        height, width = read_picture(files[0]).shape[:2]
        count: int | None = len(files)
    else:
        info = probe(path)
        height, width, count = info.height, info.width, info.frames if info.frames_exact else None
    start, stop = span.within(count, path)
    length = None if count is None or stop is None else max(0, stop - start)
    return Pictures(path, height, width, length, start, stop, tuple(files))


def eight_bit(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Pixels:
    """``pixels`` in 8 bits, rounded to nearest."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _other_pictures(path: Path) -> list[Path]:
    """Pictures of a folder that has no PNG files."""
    if not os.path.isdir(path):
        return []
    found = [file for file in path.iterdir() if file.is_file()]
    if any(file.suffix.lower() == ".png" for file in found):
        return []
    found = [file for file in found if file.suffix.lower() in _PICTURES]
    return sorted(found, key=lambda file: _natural(file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    parts = _NUMBER.split(name.lower())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def read_picture(file: Path) -> Pixels:
    """One picture file, uint8 RGB ``[height, width, 3]``.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(file) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: not a picture: {error}. Replace it.") from error
