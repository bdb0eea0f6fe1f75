"""Checks of what a confined process says: values that no video has are refused.

Types are checked already, see :mod:`psssr_fast.video.wire`; here it is numbers, sizes and words.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.format import VideoFormat

from psssr_fast.video.color import resolve
from psssr_fast.video.info import ColorTags, Frame, StreamInfo, VideoInfo
from psssr_fast.video.limits import Limits

_INT32 = 2**31 - 1  # the largest numerator and denominator of FFmpeg's rationals
_MAX_TICKS = 2**62  # of a time; the sum and the difference of two fit 64 bits
_MAX_SECONDS = 2**35  # of a time: a thousand years
_MAX_TAG = 1023  # of colour: H.273 has 8 bits, FFmpeg a few more values from 256 on
_WORD = re.compile(r"[a-z0-9][a-z0-9_.,-]{0,99}")  # what FFmpeg calls codecs and formats
_MAX_NOTES = 1000
_MAX_NAME = 255  # bytes of a file name
# No format takes fewer bytes than these for a frame on average, and some frames have none.
_BYTES_A_FRAME, _FREE_FRAMES = 4, 256


def check(good: bool, what: str) -> None:
    """Raise ValueError, with what is wrong, unless ``good``."""
    if not good:
        raise ValueError(what)


def check_info(info: VideoInfo, is_images: bool, limits: Limits) -> VideoInfo:
    """Return a description after a look at all its values.

    Args:
        info: from the confined process.
        is_images: whether the source is a folder of PNG frames or a pattern.
        limits: that it must keep.

    Raises:
        ValueError: no video has such a value.
        InputError: it is beyond the limits.
    """
    check(info.kind == ("images" if is_images else "video"), "another kind of source")
    _check_size(info, limits)
    _check_times(info)
    _check_picture(info)
    _check_words(info, limits)
    for streams in (info.audio, info.subtitles, info.data):
        check(len(streams) <= limits.max_streams, "too many streams")
        for stream in streams:
            _check_stream(stream)
    limits.check_frames(info.path, info.frames if info.frames_exact else (info.frames or 0) // 2)
    limits.check_duration(info.path, info.duration_s)
    return info


def _check_size(info: VideoInfo, limits: Limits) -> None:
    stored, shown = (info.stored_width, info.stored_height), (info.width, info.height)
    check(min(stored) > 0, "a size of nothing")
    limits.check_size(info.path, *stored)
    check(info.rotation in (0, 90, 180, 270), "a turn by no right angle")
    turned = info.rotation in (90, 270)
    check(shown == (stored[::-1] if turned else stored), "another size than is stored")


def _check_times(info: VideoInfo) -> None:
    check(info.frames is None or info.frames >= 0, "less than no frames")
    seconds = info.duration_s
    check(seconds is None or abs(seconds) <= _MAX_SECONDS, "no possible length")
    _check_ratio(info.time_base)
    _check_ratio(info.sample_aspect_ratio)
    if info.average_rate is not None:
        _check_ratio(info.average_rate)
    for time in (info.start_time, info.end_time):
        _check_time(time)


def _check_ratio(value: Fraction) -> None:
    check(0 < value.numerator <= _INT32 and value.denominator <= _INT32, "no possible ratio")


def _check_time(time: Fraction | None) -> None:
    if time is not None:
        check(abs(time) <= _MAX_SECONDS and time.denominator <= _INT32, "no possible time")


def _check_picture(info: VideoInfo) -> None:
    check(_WORD.fullmatch(info.pixel_format) is not None, "no pixel format")
    layout = VideoFormat(info.pixel_format)  # ValueError if there is none
    images = info.kind == "images"
    depth = max(component.bits for component in layout.components)
    check(8 <= info.bit_depth <= 16 if images else info.bit_depth == depth, "another depth")
    for tags in (info.color, info.color_used):
        _check_tags(tags)
    layout_read = "rgb24" if images else info.pixel_format
    used = resolve(info.color, layout_read, info.stored_height, info.codec)
    check(info.color_used == used, "other colours than its tags say")
    display, light = info.mastering_display, info.light_level
    if display is not None:
        points = (*display.red, *display.green, *display.blue, *display.white)
        for value in (*points, display.min_luminance, display.max_luminance):
            check(0 <= value.numerator <= _INT32 and value.denominator <= _INT32, "no display")
    if light is not None:
        brightest = max(light.max_content, light.max_average)
        check(min(light.max_content, light.max_average) >= 0, "light below nothing")
        check(brightest < 2**32, "no possible light")


def _check_tags(tags: ColorTags) -> None:
    for tag in (tags.primaries, tags.transfer, tags.matrix):
        check(0 <= tag <= _MAX_TAG, "no colour tag")
    check(0 <= tags.range <= 2, "no range")


def _check_words(info: VideoInfo, limits: Limits) -> None:
    check(_WORD.fullmatch(info.codec) is not None, "no codec")
    known = {"png"} if info.kind == "images" else av.formats_available
    check(info.container in known, "no container")
    check(0 <= info.chapters <= _INT32, "no number of chapters")
    check(len(info.attachments) <= limits.max_streams, "too many attachments")
    streams = (*info.audio, *info.subtitles, *info.data)
    titles = [text for stream in streams for text in (stream.language, stream.title) if text]
    check_texts([*titles, *info.attachments], limits.max_metadata)
    check_texts(info.warnings, limits.max_metadata)
    check(len(info.warnings) <= _MAX_NOTES, "too many warnings")


def check_texts(texts: Iterable[str], most: int) -> None:
    """Raise ValueError if texts are longer than ``most`` characters together or not Unicode."""
    together = "".join(texts)
    check(len(together) <= most, "too much text")
    together.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError


def _check_stream(stream: StreamInfo) -> None:
    check(_WORD.fullmatch(stream.codec.lower()) is not None, "no codec")
    for number in (stream.index, stream.sample_rate, stream.channels):
        check(number is None or 0 <= number <= _INT32, "no stream")
    _check_time(stream.start_time)


class FrameCheck:
    """Looks at frames one after the other, counts them and gives them their names.

    Args:
        info: checked.
        names: of the pictures in a folder of PNG frames, by timestamp; ``None`` for a video.
        size: bytes of the video.
        limits: on number and length.
    """

    def __init__(
        self, info: VideoInfo, names: Sequence[str] | None, size: int, limits: Limits
    ) -> None:
        self._info = info
        self._names = names
        self._limits = limits
        self._most = _FREE_FRAMES + size // _BYTES_A_FRAME if names is None else len(names)
        if names is None and info.frames_exact and info.frames is not None:
            self._most = min(self._most, _FREE_FRAMES + 2 * info.frames)
        self._dtype = np.dtype(np.uint16 if info.bit_depth > 8 else np.uint8)
        self._count = 0
        self._first: int | None = None
        self._free = -_MAX_TICKS  # the first tick that no frame before is shown at

    @property
    def frame_bytes(self) -> int:
        """Bytes of the pixels of a frame."""
        return self._info.height * self._info.width * 3 * self._dtype.itemsize

    def accept(self, frame: Frame) -> Frame:
        """Return a frame under the name that it is to have.

        Raises:
            ValueError: it is none of this video, or there are more than it can hold.
            InputError: it is beyond the limits.
        """
        self._count += 1
        self._limits.check_frames(self._info.path, self._count)
        check(self._count <= self._most, "more frames than the file can hold")
        size = (self._info.height, self._info.width)
        check(frame.pixels.shape == (*size, 3), "another size than the video's")
        check(frame.pixels.dtype == self._dtype, "another depth than the video's")
        if frame.alpha is not None:
            check(frame.alpha.shape == size, "opacity of another size")
            check(frame.alpha.dtype == self._dtype, "opacity of another depth")
        self._check_times(frame)
        return replace(frame, name=self._name(frame))

    def _check_times(self, frame: Frame) -> None:
        base, pts = self._info.time_base, frame.pts
        check(self._free <= pts <= _MAX_TICKS, "a time that does not grow")
        check(abs(pts * base) <= _MAX_SECONDS, "no possible time")
        length = 1 if frame.duration is None else frame.duration
        check(0 < length <= _MAX_TICKS and length * base <= _MAX_SECONDS, "no possible duration")
        self._free = pts + length
        self._first = pts if self._first is None else self._first
        self._limits.check_duration(self._info.path, float((pts - self._first) * base))

    def _name(self, frame: Frame) -> str:
        name = frame.name
        if self._names is not None:
            check(0 <= frame.pts < len(self._names), "a picture that is not in the folder")
            check(name == self._names[frame.pts], "a picture of another name")
            return name
        check(name.isprintable() and "/" not in name and len(name) <= _MAX_NAME, "no file name")
        return f"frame_{self._count:06d}.png"


def check_notes(notes: Sequence[str], pictures: int, limits: Limits) -> None:
    """Raise ValueError if there are more warnings than reading could give.

    Args:
        notes: after the last frame.
        pictures: in a folder of PNG frames, each of which may give one; 0 for a video.
        limits: on text.
    """
    check(len(notes) <= _MAX_NOTES + pictures, "too many warnings")
    check(sum(map(len, notes)) <= limits.max_metadata, "too much text")


def file_size(path: Path) -> int:
    """Return the bytes of a file; 0 for a folder and where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return path.stat().st_size if path.is_file() else 0
    return 0
