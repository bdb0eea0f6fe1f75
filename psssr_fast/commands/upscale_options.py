"""The options of ``psssr upscale``: names, help, and the panels of its help page."""

from enum import StrEnum
from fractions import Fraction
from typing import Annotated

import typer

from psssr_fast.commands.progress import ProgressStyle
from psssr_fast.config import Profile

_SIZE, _MODEL, _PICTURE = "Size", "Model", "Picture"
_ENCODER, _EXISTING, _PRINTED = "Encoder", "Existing outputs", "What is printed"


class Dtype(StrEnum):
    """What the networks compute in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Filter(StrEnum):
    """The low-pass of the frequency-domain update."""

    SPATIAL19 = "spatial19"
    FFT = "fft"


class Detector(StrEnum):
    """What finds scene cuts."""

    AUTO = "auto"
    SCENEDETECT = "scenedetect"
    OFF = "off"


def number(text: str) -> float:
    """Read a number.

    Raises:
        typer.BadParameter: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number, as 4 or 1.5; got {text!r}") from None


def rate(text: str | Fraction) -> Fraction:
    """Read a frame rate.

    Raises:
        typer.BadParameter: it is not a positive number or fraction.
    """
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise typer.BadParameter(f"must be a positive rate, as 25 or 30000/1001; got {text!r}")
    return value


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IN",
        help="Videos, folders of PNG frames, folders of videos. Names that begin with a dash come "
        "after --.",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="A video (.mp4, .mkv, .mov, .m4v, .webm), or a folder for PNG frames. For several "
        "inputs: the folder to put outputs in. Default: IN.psssr4x.mp4 beside each input.",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        "-s",
        "--scale",
        parser=number,
        metavar="NUMBER",
        help="Output size over input size.",
        show_default="4",
        rich_help_panel=_SIZE,
    ),
]
Height = Annotated[
    int | None,
    typer.Option("--height", help="Output height in pixels, instead.", rich_help_panel=_SIZE),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="nano (built in), a directory with weights, or OWNER/NAME on Hugging Face.",
        rich_help_panel=_MODEL,
    ),
]
ProfileChoice = Annotated[
    Profile,
    typer.Option(
        "--profile",
        help="The reading of PS-SR: that of its public release, or that of the paper.",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MODEL),
]
DtypeChoice = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="auto is bfloat16 on CUDA, and on a CPU what is faster.",
        rich_help_panel=_MODEL,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention", help="auto, or one that psssr doctor lists.", rich_help_panel=_MODEL
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine", help="fused, or plain: slower, the reference.", rich_help_panel=_MODEL
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", help="Never touch the network.", rich_help_panel=_MODEL, show_default=False
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="The same bits every time, on the same kind of device.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        help="How much of the fine detail to add, 0 to 2.",
        show_default="the profile's, 1 or 0.6",
        rich_help_panel=_PICTURE,
    ),
]
FilterChoice = Annotated[
    Filter | None,
    typer.Option(
        "--fdu-filter",
        help="What tells fine detail: a 19x19 kernel, or the release's FFT.",
        rich_help_panel=_PICTURE,
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="FRAMESxHEIGHTxWIDTH",
        help="What the model sees at once, in output pixels; smaller needs less memory.",
        show_default="the model's",
        rich_help_panel=_PICTURE,
    ),
]
Overlap = Annotated[
    str | None,
    typer.Option(
        "--overlap",
        metavar="FRAMESxPIXELS",
        help="What neighbouring windows share.",
        show_default="the model's, at most half a window",
        rich_help_panel=_PICTURE,
    ),
]
SceneCuts = Annotated[
    Detector | None,
    typer.Option(
        "--scene-cuts",
        help="What finds the cuts that nothing is blended across: auto is built in, scenedetect an "
        "extra, off takes all for one scene.",
        show_default="auto",
        rich_help_panel=_PICTURE,
    ),
]
VramLimit = Annotated[
    float | None,
    typer.Option(
        "--vram-limit",
        parser=number,
        metavar="GIB",
        help="Use no more memory on the device (or RAM, for tensors, on the CPU): windows become "
        "as small as that takes.",
        show_default=False,
        rich_help_panel=_PICTURE,
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="First say which windows are used, how much memory that needs, and why.",
        show_default=False,
        rich_help_panel=_PRINTED,
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        help="libx264, libx265, libsvtav1, libvpx-vp9, ...",
        show_default="libx264",
        rich_help_panel=_ENCODER,
    ),
]
Crf = Annotated[
    int | None,
    typer.Option(
        "--crf",
        help="Constant quality, 0 (best, large) upwards.",
        show_default="16",
        rich_help_panel=_ENCODER,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Speed of libx264 and libx265, ultrafast to veryslow.",
        show_default="medium",
        rich_help_panel=_ENCODER,
    ),
]
PixelFormat = Annotated[
    str | None,
    typer.Option(
        "--pixel-format",
        help="FFmpeg's name.",
        show_default="as the source needs",
        rich_help_panel=_ENCODER,
    ),
]
EncoderOption = Annotated[
    list[str] | None,
    typer.Option(
        "-e",
        "--encoder-option",
        metavar="NAME=VALUE",
        help="Any other option of the encoder; may be repeated.",
        rich_help_panel=_ENCODER,
        show_default=False,
    ),
]
FrameRate = Annotated[
    Fraction,
    typer.Option(
        "--frame-rate",
        parser=rate,
        metavar="NUMBER",
        help="Frames a second of a folder of PNG frames, as 25 or 30000/1001.",
        show_default="25",
    ),
]
AllowDamaged = Annotated[
    bool,
    typer.Option(
        "--allow-damaged",
        help="Keep what can be decoded of a damaged or truncated input, with a warning.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace existing outputs.",
        rich_help_panel=_EXISTING,
        show_default=False,
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Begin again instead of going on where an interrupted run stopped.",
        rich_help_panel=_EXISTING,
        show_default=False,
    ),
]
ChunkFrames = Annotated[
    int | None,
    typer.Option(
        "--chunk-frames",
        metavar="NUMBER",
        help="How many frames are kept at a time, in case it is interrupted: fewer lose less then "
        "and make the file a little larger.",
        show_default="96 or more",
        rich_help_panel=_EXISTING,
    ),
]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="Leave out inputs whose output is there.",
        rich_help_panel=_EXISTING,
        show_default=False,
    ),
]
Progress = Annotated[
    ProgressStyle,
    typer.Option(
        "--progress",
        help="auto is a bar on a terminal and plain lines elsewhere; json is NDJSON on stderr.",
        rich_help_panel=_PRINTED,
    ),
]
