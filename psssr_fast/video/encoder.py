"""Settings of the video encoder, and what becomes of them for a given file and frame size."""

import functools
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.video.format import VideoFormat

from psssr_fast.errors import UsageError
from psssr_fast.video.alpha import has_alpha
from psssr_fast.video.deep import component_bits
from psssr_fast.video.hdr import HDR_NAMES, encoder_parameters
from psssr_fast.video.info import VideoInfo

FALLBACK_RATE = Fraction(25)  # where the source does not say
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}

AUTO = "auto"

_DEFAULT_CODEC = "libx264"
_PARAMETERS = {"libx264": "x264-params", "libx265": "x265-params", "libsvtav1": "svtav1-params"}
# x265's alpha is a second layer, which nothing but Apple's players and new FFmpegs show.
_CODECS_WITHOUT_ALPHA = frozenset({"libx265"})


@dataclass(frozen=True)
class EncoderSettings:
    """How the output video is compressed.

    Attributes:
        codec: FFmpeg's name of an encoder; the default becomes ``libvpx-vp9`` in a ``.webm``.
        crf: constant quality, 0 (best) upwards; libx264, libx265, libsvtav1 and libvpx-vp9 know
            it, for others use ``options``.
        preset: speed of libx264 and libx265; for others use ``options``.
        pixel_format: FFmpeg's name; ``"auto"`` keeps the depth of the source, its alpha where the
            codec can, and as much chroma as it has; see :func:`settle`.
        threads: of the encoder; 0 lets it choose.
        options: further options of the encoder, as (name, value); they win over the above.
        audio: ``"copy"`` carries the sound over unchanged, ``"drop"`` leaves it out.

    Raises:
        UsageError: a name or option is no printable text.
    """

    codec: str = _DEFAULT_CODEC
    crf: int = 16
    preset: str = "medium"
    pixel_format: str = AUTO
    threads: int = 0
    options: tuple[tuple[str, str], ...] = ()
    audio: Literal["copy", "drop"] = "copy"

    def __post_init__(self) -> None:
        texts = [
            ("codec", self.codec),
            ("preset", self.preset),
            ("pixel_format", self.pixel_format),
        ]
        texts += [("options", text) for pair in self.options for text in pair]
        for name, value in texts:
            # Encoders print what they do not know as it is, and end a text at a NUL.
            if not isinstance(value, str) or not value.isprintable():
                raise UsageError(f"the encoder's {name} must be printable text; got {value!r}")

    def codec_options(self) -> dict[str, str]:
        """The options that the encoder is opened with."""
        options = {}
        if self.codec in ("libx264", "libx265", "libsvtav1", "libvpx-vp9"):
            options["crf"] = str(self.crf)
        if self.codec in ("libx264", "libx265"):
            options["preset"] = self.preset
        if self.codec == "libvpx-vp9":
            options["row-mt"] = "1"  # its threads find little to do otherwise
            if self.pixel_format != AUTO and has_alpha(self.pixel_format):
                options["auto-alt-ref"] = "0"  # with it, libvpx refuses alpha
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
    settings: EncoderSettings,
    path: Path,
    width: int,
    height: int,
    frames: int | None = None,
    source: VideoInfo | None = None,
) -> EncoderSettings:
    """The settings that a file really gets.

    WebM holds no H.264: its default is VP9. Chroma that is halved needs even sides (VP9 excepted):
    a frame with an odd side is stored with full chroma, 4:4:4, rather than cropped. The pixel
    format ``"auto"`` becomes the one of :func:`choose_pixel_format`. What an HDR ``source`` says of
    itself is given to the encoder. ``frames`` is how many are expected, if that is known.

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
    if settings.pixel_format == AUTO:
        chosen = choose_pixel_format(settings.codec, source, width, height)
        settings = replace(settings, pixel_format=chosen)
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
    return _settle_hdr(settings, source)


def choose_pixel_format(codec: str, source: VideoInfo | None, width: int, height: int) -> str:
    """The pixel format of an output of ``width`` x ``height`` if nobody asks for one.

    Depth: that of the source, or the next that the codec has. Alpha: if the source has it and the
    codec can. Chroma: 4:2:0, unless that would leave less of it than the source has. (Twice as
    large, 4:2:0 holds all of a 4:4:4 source's.)
    """
    offered = {layout.name for layout in Codec(codec, "w").video_formats or []}
    if codec.startswith("libvpx"):  # says that it takes others with alpha, and then refuses them
        offered = {name for name in offered if not name.startswith("yuva") or name == "yuva420p"}
    bits, alpha = (8, False) if source is None else (source.bit_depth, source.alpha)
    halved = (True, True) if source is None else _chroma_may_be_halved(source, width, height)
    wanted = {(True, True): "420", (True, False): "422"}.get(halved, "444")
    order = {"420": ("420", "422", "444"), "422": ("422", "444", "420"), "444": ("444", "422")}
    transparent = [True, False] if alpha and codec not in _CODECS_WITHOUT_ALPHA else [False]
    for letter in ("a" if wish else "" for wish in transparent):
        for depth in (*(b for b in (8, 10, 12, 16) if b >= bits), 12, 10, 8):
            for sampling in (*order[wanted], "420"):
                name = f"yuv{letter}{sampling}p{'' if depth == 8 else f'{depth}le'}"
                if name in offered:
                    return name
    return "yuv420p"


def _chroma_may_be_halved(source: VideoInfo, width: int, height: int) -> tuple[bool, bool]:
    """Horizontally and vertically: whether it was already, or the frame is twice as large."""
    layout = VideoFormat(source.pixel_format, 2, 2)
    # A gray picture has no chroma to lose.
    gray = len(layout.components) < 3 and not layout.has_palette
    across = gray or layout.chroma_width() == 1
    down = gray or layout.chroma_height() == 1
    if source.stored_width != source.width:  # turned by a quarter
        across, down = down, across
    return across or width >= 2 * source.width, down or height >= 2 * source.height


def losses(settings: EncoderSettings, source: VideoInfo) -> list[str]:
    """What of the picture does not get into a video with these settled settings, a line each."""
    notes = []
    codec, bits = settings.codec, component_bits(settings.pixel_format)
    if bits < source.bit_depth:
        hdr = HDR_NAMES.get(source.color.transfer)
        banding = f"; with {hdr}, banding is likely" if hdr and bits == 8 else ""
        notes.append(
            f"{source.bit_depth}-bit video is stored with {bits} bits "
            f"({codec}, {settings.pixel_format}){banding}"
        )
    if source.alpha and not has_alpha(settings.pixel_format):
        notes.append(
            f"the alpha channel is dropped: {codec} as {settings.pixel_format} holds none; a "
            "folder of PNG frames, a .webm, or --codec ffv1 (.mkv) or prores_ks (.mov) keeps it"
        )
    if (source.mastering_display or source.light_level) and codec not in _PARAMETERS:
        notes.append(
            f"mastering display and light level are dropped: {codec} does not store them; "
            "libx264, libx265 and libsvtav1 do"
        )
    return notes


def _settle_hdr(settings: EncoderSettings, source: VideoInfo | None) -> EncoderSettings:
    if source is None or not (source.mastering_display or source.light_level):
        return settings
    found = encoder_parameters(settings.codec, source.mastering_display, source.light_level)
    if found is None:
        return settings
    return _with_parameter(settings, found[1])


def _with_parameter(settings: EncoderSettings, parameter: str) -> EncoderSettings:
    """With a parameter of the encoder's own kind, before those that were asked for: the last of a
    name counts."""
    name = _PARAMETERS[settings.codec]
    quiet = "log-level=error" if settings.codec == "libx265" else None
    given = dict(settings.options).get(name, quiet)
    value = parameter if given is None else f"{parameter}:{given}"
    return replace(settings, options=(*settings.options, (name, value)))


def _settle_x265(settings: EncoderSettings, width: int, frames: int | None) -> EncoderSettings:
    """Keep the x265 in PyAV 18.1 away from what it cannot do.

    Narrower than 64 pixels it corrupts memory. In a clip shorter than its B-frame delay it leaves
    the dts uninitialised, and two of three such files cannot be written.
    """
    if width < 64:
        raise UsageError(f"libx265 needs a width of at least 64 pixels; got {width}. Use libx264.")
    if frames is None or frames > 8:
        return settings
    return _with_parameter(settings, "bframes=0")
