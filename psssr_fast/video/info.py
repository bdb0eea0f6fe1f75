"""What is known about a video, and one frame of it: the values that reading and writing share."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from psssr_fast.video.alpha import enlarge_alpha
from psssr_fast.video.deep import Values
from psssr_fast.video.hdr import LightLevel, MasteringDisplay

UNKNOWN = 2  # "unspecified" in all three tables of ISO/IEC 23091-2 (H.273)

_PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film",
    9: "bt2020", 10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
_TRANSFERS = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear",
    9: "log100", 10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1",
    14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
_MATRICES = {
    0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco",
    9: "bt2020nc", 10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc",
    13: "chroma-derived-c", 14: "ictcp", 15: "ipt-c2", 16: "ycgco-re", 17: "ycgco-ro",
}  # fmt: skip
_RANGES = {1: "tv", 2: "pc"}


@dataclass(frozen=True)
class ColorTags:
    """How numbers mean colours: the code points of H.273, which FFmpeg uses as they are.

    Attributes:
        primaries, transfer, matrix: code points; 2 is "not said".
        range: 0 not said, 1 limited (16 to 235), 2 full (0 to 255).
    """

    primaries: int = UNKNOWN
    transfer: int = UNKNOWN
    matrix: int = UNKNOWN
    range: int = 0

    def names(self) -> dict[str, str]:
        """FFmpeg's names of the four tags; ``"unknown"`` where the file says nothing."""
        return {
            "primaries": _PRIMARIES.get(self.primaries, "unknown"),
            "transfer": _TRANSFERS.get(self.transfer, "unknown"),
            "matrix": _MATRICES.get(self.matrix, "unknown"),
            "range": _RANGES.get(self.range, "unknown"),
        }


@dataclass(frozen=True)
class StreamInfo:
    """One audio, subtitle or data stream.

    Attributes:
        index: its number in the file.
        codec: FFmpeg's name of its codec, ``"unknown"`` if FFmpeg has no decoder.
        start_time: time of its first packet, seconds; ``None`` if the container does not say.
        sample_rate: samples a second, audio only.
        channels: audio only.
    """

    index: int
    codec: str
    language: str | None = None
    title: str | None = None
    start_time: Fraction | None = None
    sample_rate: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class VideoInfo:
    """A video file or a folder of PNG frames, as :func:`psssr_fast.video.probe` finds it.

    Attributes:
        kind: ``"video"`` (a file) or ``"images"`` (a folder of PNG frames).
        width, height: pixels as shown, after rotation: the size of every frame that is read.
        stored_width, stored_height: pixels as stored, before rotation.
        frames: number of frames, or ``None`` if nothing tells.
        frames_exact: whether ``frames`` is a count; otherwise it is an estimate.
        duration_s: seconds, or ``None``.
        average_rate: frames a second over the whole file, or ``None``.
        time_base: seconds a tick of :attr:`Frame.pts`.
        start_time: presentation time of the first frame, seconds.
        end_time: when the last frame stops being shown, seconds; ``None`` if no index says it.
        bit_depth: bits of a component as stored; above 8, frames are read as 16 bits.
        color: the tags as the file has them.
        color_used: the tags that frames are decoded with: ``color``, with the blanks filled by
            :func:`psssr_fast.video.color.resolve`.
        rotation: degrees that the stored picture is turned clockwise to be shown.
        sample_aspect_ratio: width over height of a pixel as shown.
        interlaced: whether its frames are made of two fields.
        alpha: whether it has an alpha plane.
        mastering_display, light_level: what an HDR video says of itself.
        chapters: how many.
        attachments: names of the files in the file: fonts, cover pictures.
        data: timecodes, subtitles for machines, and what else is in streams of its own.
        warnings: what a user should know, one line each.
    """

    path: Path
    kind: Literal["video", "images"]
    width: int
    height: int
    stored_width: int
    stored_height: int
    frames: int | None
    frames_exact: bool
    duration_s: float | None
    average_rate: Fraction | None
    time_base: Fraction
    start_time: Fraction
    end_time: Fraction | None
    container: str
    codec: str
    pixel_format: str
    bit_depth: int
    color: ColorTags
    color_used: ColorTags
    rotation: int = 0
    sample_aspect_ratio: Fraction = Fraction(1)
    interlaced: bool = False
    alpha: bool = False
    mastering_display: MasteringDisplay | None = None
    light_level: LightLevel | None = None
    audio: tuple[StreamInfo, ...] = ()
    subtitles: tuple[StreamInfo, ...] = ()
    data: tuple[StreamInfo, ...] = ()
    chapters: int = 0
    attachments: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values: fractions as ``"num/den"``, colour tags by name."""
        values: dict[str, Any] = _jsonable(dataclasses.asdict(self))
        values["color"] = self.color.names()
        values["color_used"] = self.color_used.names()
        return values


def _jsonable(value: Any) -> Any:
    match value:
        case Fraction():
            return f"{value.numerator}/{value.denominator}"
        case Path():
            return str(value)
        case dict():
            return {key: _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
    return value


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        pixels: ``[height, width, 3]`` RGB, upright: uint8, or uint16 up to 65535 for sources of
            more than 8 bits.
        pts: presentation time in ticks of :attr:`VideoInfo.time_base`; grows from frame to frame.
        duration: ticks that the frame is shown: up to the next one; ``None`` where nothing tells
            for the last.
        name: file name for the frame in a folder of PNG frames.
        alpha: opacity, ``[height, width]``, dtype of ``pixels``; ``None`` if all is opaque.
    """

    pixels: Values
    pts: int
    duration: int | None
    name: str
    alpha: Values | None = None

    def with_pixels(self, pixels: Values) -> "Frame":
        """The same frame with other pixels; alpha is brought to their size, bicubic."""
        if self.alpha is None:
            return dataclasses.replace(self, pixels=pixels)
        alpha = enlarge_alpha(self.alpha, *pixels.shape[:2])
        return dataclasses.replace(self, pixels=pixels, alpha=alpha)


class Reader(Protocol):
    """Frames of a video, one pass, in presentation order. A context manager.

    Attributes:
        info: what was found on opening.
    """

    info: VideoInfo

    @property
    def warnings(self) -> tuple[str, ...]:
        """``info.warnings``, and what was noticed while reading."""

    def __enter__(self) -> Self:
        """Open the source."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the source."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame once.

        Raises:
            InputError: the source turns out damaged, cut short or inconsistent; the frames before
                that have been yielded.
        """
