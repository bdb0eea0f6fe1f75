"""What HDR video says of the display it was graded on, and how encoders are told."""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
from av.sidedata.sidedata import SideData, SideDataContainer, Type

PQ, HLG = 16, 18  # transfer characteristics of H.273
HDR_NAMES = {PQ: "PQ", HLG: "HLG"}

_CHROMATICITY = 50_000  # units of H.264 and HEVC (ISO/IEC 23008-2, D.3.28): 0.00002
_LUMINANCE = 10_000  # 0.0001 cd/m2

_DISPLAY = struct.Struct("=22i")  # FFmpeg's AVMasteringDisplayMetadata
_LIGHT = struct.Struct("=2I")  # FFmpeg's AVContentLightMetadata

Point = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class MasteringDisplay:
    """The display that a video was graded on (SMPTE ST 2086).

    Attributes:
        red, green, blue, white: chromaticities (x, y); zero where the file does not say.
        min_luminance, max_luminance: cd/m2; zero where the file does not say.
    """

    red: Point
    green: Point
    blue: Point
    white: Point
    min_luminance: Fraction
    max_luminance: Fraction


@dataclass(frozen=True)
class LightLevel:
    """How bright a video gets (CTA-861.3), cd/m2; 0 is "not said".

    Attributes:
        max_content: the brightest pixel.
        max_average: the brightest frame, on average.
    """

    max_content: int
    max_average: int


def read_side_data(picture: av.VideoFrame) -> Mapping[Type, SideData]:
    """Read what comes with a picture.

    The result keeps the picture. ``picture.side_data`` would be kept by the picture as well, a
    cycle: every picture that was asked would live until Python collects its garbage.

    Raises:
        ValueError: PyAV has no name for some kinds, such as EXIF, and then gives none at all.
    """
    read = cast("Callable[[av.VideoFrame], Any]", SideDataContainer)  # PyAV's stub has no argument
    return cast("Mapping[Type, SideData]", read(picture))


def side_data_of(picture: av.VideoFrame) -> dict[Type, SideData]:
    """What comes with a picture, by its type; nothing if PyAV has no name for some of it."""
    try:
        return {item.type: item for item in cast("Iterable[SideData]", read_side_data(picture))}
    except ValueError:
        return {}


def mastering_display_of(picture: av.VideoFrame) -> MasteringDisplay | None:
    """The mastering display that a decoder gives with a picture."""
    data = side_data_of(picture).get(Type.MASTERING_DISPLAY_METADATA)
    if data is None or len(bytes(data)) < _DISPLAY.size:
        return None
    *numbers, has_primaries, has_luminance = _DISPLAY.unpack(bytes(data)[: _DISPLAY.size])
    values = [
        Fraction(numbers[i], numbers[i + 1]) if numbers[i + 1] else Fraction(0)
        for i in range(0, len(numbers), 2)
    ]
    if not has_primaries:
        values[:8] = [Fraction(0)] * 8
    if not has_luminance:
        values[8:] = [Fraction(0)] * 2
    red, green, blue, white = ((values[i], values[i + 1]) for i in range(0, 8, 2))
    return MasteringDisplay(red, green, blue, white, *values[8:])


def light_level_of(picture: av.VideoFrame) -> LightLevel | None:
    """The content light level that a decoder gives with a picture."""
    data = side_data_of(picture).get(Type.CONTENT_LIGHT_LEVEL)
    if data is None or len(bytes(data)) < _LIGHT.size:
        return None
    return LightLevel(*_LIGHT.unpack(bytes(data)[: _LIGHT.size]))


def encoder_parameters(
    codec: str, display: MasteringDisplay | None, light: LightLevel | None
) -> tuple[str, str] | None:
    """The option, and its value, that make an encoder write both into its stream.

    ``None`` for an encoder that cannot. Values are in the encoder's own steps: those of H.264 and
    HEVC hold what came from H.264 and HEVC exactly.
    """
    match codec:
        case "libx264":
            name, names, points = "x264-params", ("mastering-display", "cll"), _in_steps(display)
        case "libx265":
            name, names, points = "x265-params", ("master-display", "max-cll"), _in_steps(display)
        case "libsvtav1":
            name, names = "svtav1-params", ("mastering-display", "content-light")
            points = _in_decimals(display)
        case _:
            return None
    parts = [] if points is None else [f"{names[0]}={points}"]
    if light is not None:
        parts.append(f"{names[1]}={light.max_content},{light.max_average}")
    return name, ":".join(parts)


def _in_steps(display: MasteringDisplay | None) -> str | None:
    if display is None:
        return None

    def point(name: str, at: Point) -> str:
        return f"{name}({round(at[0] * _CHROMATICITY)},{round(at[1] * _CHROMATICITY)})"

    bright, dark = display.max_luminance * _LUMINANCE, display.min_luminance * _LUMINANCE
    return (
        point("G", display.green) + point("B", display.blue) + point("R", display.red)
        + point("WP", display.white) + f"L({round(bright)},{round(dark)})"
    )  # fmt: skip


def _in_decimals(display: MasteringDisplay | None) -> str | None:
    if display is None:
        return None

    def point(name: str, at: Point) -> str:
        return f"{name}({float(at[0]):.6f},{float(at[1]):.6f})"

    return (
        point("G", display.green) + point("B", display.blue) + point("R", display.red)
        + point("WP", display.white)
        + f"L({float(display.max_luminance):.6f},{float(display.min_luminance):.6f})"
    )  # fmt: skip
