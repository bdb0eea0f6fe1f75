"""A folder of PNG frames as a video: reading and writing, lossless."""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter

from psssr_fast.errors import InputError, UsageError
from psssr_fast.files import open_input
from psssr_fast.video.alpha import alpha_of
from psssr_fast.video.color import PixelConverter, resolve, tags_of
from psssr_fast.video.container import check_readable
from psssr_fast.video.info import Frame, VideoInfo
from psssr_fast.video.limits import DEFAULT_LIMITS, Limits
from psssr_fast.video.watch import lost_with

_PATTERN = re.compile(r"%(?:0(\d))?d")
_DIGITS = re.compile(r"(\d+)")


def is_image_source(path: str | Path) -> bool:
    """Whether a path is a folder, or a pattern such as ``frames/%06d.png`` and no file."""
    file = Path(path)
    is_pattern = file.suffix.lower() == ".png" and _PATTERN.search(file.name) is not None
    # Those of Path raise for names that the system refuses.
    return os.path.isdir(file) or (is_pattern and not os.path.exists(file))


def list_images(path: str | Path) -> list[Path]:
    """The PNG files of a folder in natural order (2 before 10), or those that match a pattern.

    Raises:
        InputError: there are none, or numbers of a pattern are missing in between.
    """
    file = Path(path)
    if not os.path.isdir(file):
        return _list_pattern(file)
    check_readable(file)
    found = [item for item in file.iterdir() if item.suffix.lower() == ".png" and item.is_file()]
    if not found:
        raise InputError(f"{path}: no PNG files in this folder. Give a folder of PNG frames.")
    return sorted(found, key=lambda item: _natural(item.name))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = _DIGITS.split(name)  # text, digits, text, digits, ..., text
    keys = [(int(part), "") if i % 2 else (0, part.lower()) for i, part in enumerate(parts)]
    return keys, name


def _list_pattern(pattern: Path) -> list[Path]:
    match = _PATTERN.search(pattern.name)
    assert match is not None
    width = int(match[1] or 0)
    before, after = pattern.name[: match.start()], pattern.name[match.end() :]
    numbered = re.compile(f"{re.escape(before)}(\\d{{{max(width, 1)},}}){re.escape(after)}")
    check_readable(pattern.parent)
    found = {
        int(hit[1]): item
        for item in pattern.parent.iterdir()
        if (hit := numbered.fullmatch(item.name))
    }
    if not found:
        raise InputError(f"{pattern}: no file matches this pattern. Check the folder and the name.")
    for number in range(min(found), max(found)):
        if number not in found:
            raise InputError(
                f"{pattern}: frame {number} is missing, but {max(found)} exists. Add it, or give "
                "the folder to read what is there."
            )
    return [found[number] for number in sorted(found)]


def _decode_png(file: Path, limits: Limits) -> av.VideoFrame:
    # A new decoder for each file: one that goes on takes a file for changes to the last picture.
    context = VideoCodecContext.create("png", "r")
    context.thread_count = 1
    context.options = {"err_detect": "crccheck", **limits.decoder_options()}
    reason = "it holds no picture"
    limits.check_png(file)
    try:
        with open_input(file) as stream:
            pictures = context.decode(av.Packet(stream.read()))
        if pictures and not pictures[0].is_corrupt:
            return pictures[0]
        if pictures:
            reason = "it is damaged"
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
    raise InputError(f"{file}: not a PNG picture: {reason}. Replace it.")


def probe_images(
    path: str | Path, frame_rate: Fraction, limits: Limits = DEFAULT_LIMITS
) -> VideoInfo:
    """Describe a folder of PNG frames by its first picture.

    Raises:
        InputError: there are no PNG files, the first cannot be decoded, or they are beyond the
            limits.
    """
    return _describe(Path(path), list_images(path), frame_rate, limits)


def _describe(path: Path, files: list[Path], frame_rate: Fraction, limits: Limits) -> VideoInfo:
    if frame_rate <= 0:
        raise UsageError(f"frame rate must be above 0; got {frame_rate}")
    limits.check_frames(path, len(files))
    limits.check_duration(path, float(len(files) / frame_rate))
    first = _decode_png(files[0], limits)
    tags = tags_of(first)
    bits, alpha = _depth_and_alpha(files)
    see_through = alpha_of(first, False, VideoReformatter()) is not None
    return VideoInfo(
        path=path,
        kind="images",
        width=first.width,
        height=first.height,
        stored_width=first.width,
        stored_height=first.height,
        frames=len(files),
        frames_exact=True,
        duration_s=float(len(files) / frame_rate),
        average_rate=frame_rate,
        time_base=1 / frame_rate,
        start_time=Fraction(0),
        end_time=len(files) / frame_rate,
        container="png",
        codec="png",
        pixel_format=first.format.name,
        bit_depth=bits,
        color=tags,
        color_used=resolve(tags, "rgb24", first.height, "png"),
        alpha=alpha or see_through,
        warnings=tuple(lost_with(first)),
    )


def _depth_and_alpha(files: list[Path]) -> tuple[int, bool]:
    """Bits of the deepest picture, 8 or 16, and whether any has an alpha channel (a palette's
    transparency left aside): what the headers say (PNG specification, 11.2.1)."""
    bits, alpha = 8, False
    for file in files:
        with open_input(file) as stream:
            start = stream.read(26)
        if len(start) == 26 and start[12:16] == b"IHDR":
            bits = max(bits, start[24])
            alpha = alpha or start[25] in (4, 6)
    return min(bits, 16), alpha


class ImageReader:
    """Frames of a folder of PNG files; frame ``i`` has timestamp ``i``.

    Args:
        path: a folder, or a pattern such as ``frames/%06d.png``.
        frame_rate: frames a second.
        allow_damaged: leave out pictures that cannot be decoded, with a warning.
        limits: on their number and size.

    Raises:
        InputError: as :func:`psssr_fast.video.probe`.
    """

    def __init__(
        self,
        path: str | Path,
        frame_rate: Fraction,
        allow_damaged: bool = False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._files = list_images(path)
        self._limits = limits
        self.info = _describe(Path(path), self._files, frame_rate, limits)
        self._allow_damaged = allow_damaged
        self._notes: dict[str, None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """``info.warnings``, and what was noticed in later pictures."""
        return tuple(dict.fromkeys((*self.info.warnings, *self._notes)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close: every file is read whole."""

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self._files):
            try:
                picture = _decode_png(file, self._limits)
            except InputError as error:
                if not self._allow_damaged:
                    raise
                self._notes[f"left out: {error}"] = None
                continue
            yield self._frame(picture, file, index)

    def _frame(self, picture: av.VideoFrame, file: Path, index: int) -> Frame:
        size = (picture.width, picture.height)
        if size != (self.info.width, self.info.height):
            raise InputError(
                f"{file}: {size[0]}x{size[1]}, but {self._files[0].name} is "
                f"{self.info.width}x{self.info.height}; all frames must have one size."
            )
        tags = resolve(self.info.color, picture.format.name, picture.height, "png")
        convert, deep = PixelConverter(tags, "png"), self.info.bit_depth > 8
        return Frame(
            pixels=convert.to_words(picture) if deep else convert.to_rgb(picture),
            pts=index,
            duration=1,
            name=file.name,
            alpha=convert.alpha_of(picture, deep),
        )
