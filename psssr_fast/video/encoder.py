"""Settings of the video encoder, and what becomes of them for a given file and frame size."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.video.format import VideoFormat

from psssr_fast.errors import UsageError

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}

_DEFAULT_CODEC = "libx264"


@dataclass(frozen=True)
class EncoderSettings:
    """How the output video is compressed.

    Attributes:
        codec: FFmpeg's name of an encoder; the default becomes ``libvpx-vp9`` in a ``.webm``.
        crf: constant quality, 0 (best) upwards; libx264, libx265, libsvtav1 and libvpx-vp9 know
            it, for others use ``options``.
        preset: speed of libx264 and libx265; for others use ``options``.
        pixel_format: FFmpeg's name; see :func:`settle` for odd sizes.
        threads: of the encoder; 0 lets it choose.
        options: further options of the encoder, as (name, value); they win over the above.
        audio: ``"copy"`` carries the sound over unchanged, ``"drop"`` leaves it out.
    """

    codec: str = _DEFAULT_CODEC
    crf: int = 16
    preset: str = "medium"
    pixel_format: str = "yuv420p"
    threads: int = 0
    options: tuple[tuple[str, str], ...] = ()
    audio: Literal["copy", "drop"] = "copy"

    def codec_options(self) -> dict[str, str]:
        """The options that the encoder is opened with."""
        options = {}
        if self.codec in ("libx264", "libx265", "libsvtav1", "libvpx-vp9"):
            options["crf"] = str(self.crf)
        if self.codec in ("libx264", "libx265"):
            options["preset"] = self.preset
        if self.codec == "libvpx-vp9":
            options["row-mt"] = "1"  # its threads find little to do otherwise
        if self.codec == "libx265":
            options["x265-params"] = "log-level=error"  # it prints past every logger
        options |= dict(self.options)
        if self.codec == "libx264" and _has_avx512():
            given = options.get("x264-params")
            options["x264-params"] = "asm=AVX2" if given is None else f"asm=AVX2:{given}"
        return options


@functools.cache
def _has_avx512() -> bool:
    """Whether x264 would use its AVX-512 code.

    With it, the same frames give other bytes from run to run, through the macroblock tree
    (PyAV 18.1, preset medium, 320x192: 11 outcomes in 12 runs); with ``asm=AVX2`` they do not.
    """
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and " avx512bw " in cpu.read_text(encoding="utf-8", errors="replace")


def settle(
    settings: EncoderSettings, path: Path, width: int, height: int, frames: int | None = None
) -> EncoderSettings:
    """The settings that a file really gets.

    WebM holds no H.264: its default is VP9. Chroma that is halved needs even sides (VP9 excepted):
    a frame with an odd side is stored with full chroma, 4:4:4, rather than cropped. ``frames`` is
    how many are expected, if that is known.

    Raises:
        UsageError: no such encoder or pixel format, or the frame is too narrow for it.
    """
    if settings.codec == _DEFAULT_CODEC and path.suffix.lower() == ".webm":
        settings = replace(settings, codec="libvpx-vp9")
    try:
        Codec(settings.codec, "w")
    except UnknownCodecError as error:
        raise UsageError(
            f"no such encoder: {settings.codec!r}; try libx264, libx265, libsvtav1 or libvpx-vp9"
        ) from error
    try:
        layout = VideoFormat(settings.pixel_format, 2, 2)
    except ValueError as error:
        raise UsageError(
            f"no such pixel format: {settings.pixel_format!r}; try yuv420p or yuv444p"
        ) from error
    if settings.codec == "libx265":
        settings = _settle_x265(settings, width, frames)
    odd_width = width % 2 and layout.chroma_width() == 1
    odd_height = height % 2 and layout.chroma_height() == 1
    if settings.codec != "libvpx-vp9" and (odd_width or odd_height):
        full = settings.pixel_format.replace("420", "444").replace("422", "444")
        settings = replace(settings, pixel_format=full)
    return settings


def _settle_x265(settings: EncoderSettings, width: int, frames: int | None) -> EncoderSettings:
    """Keep the x265 in PyAV 18.1 away from what it cannot do.

    Narrower than 64 pixels it corrupts memory. In a clip shorter than its B-frame delay it leaves
    the dts uninitialised, and two of three such files cannot be written.
    """
    if width < 64:
        raise UsageError(f"libx265 needs a width of at least 64 pixels; got {width}. Use libx264.")
    if frames is None or frames > 8:
        return settings
    given = dict(settings.options).get("x265-params", "log-level=error")
    option = ("x265-params", f"bframes=0:{given}")
    return replace(settings, options=(*settings.options, option))
