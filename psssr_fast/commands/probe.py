"""``psssr probe``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from psssr_fast.commands.guard import DEFAULT_GUARD, Guard, guarded
from psssr_fast.commands.shell import (
    OK,
    SOME_FAILED,
    DebugOption,
    JsonOption,
    Shell,
    print_document,
    print_fields,
    print_line,
)
from psssr_fast.errors import PsssrError

if TYPE_CHECKING:
    from psssr_fast.video import StreamInfo, VideoInfo

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE", help="Videos, or folders of PNG frames.", show_default=False),
]


@guarded
def probe(
    ctx: typer.Context,
    files: Files,
    guard: Guard = DEFAULT_GUARD,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show what is in a video: size, frames, codec, colours, sound."""
    from psssr_fast.video import probe as probe_video

    shell: Shell = ctx.obj
    found: list[dict[str, Any]] = []
    failures: list[PsssrError] = []
    for path in files:
        try:
            info = probe_video(path, limits=guard.limits, sandbox=guard.sandbox)
        except PsssrError as error:
            failures.append(shell.report(error))
            found.append({"path": path, "error": str(error)})
            continue
        found.append(info.to_json())
        if not as_json:
            print_line(path)
            print_fields(fields(info))
    if as_json:
        print_document("probe", {"files": found})
    if not failures:
        return OK
    return failures[0].exit_code if len(files) == 1 else SOME_FAILED


def fields(info: "VideoInfo") -> dict[str, str | None]:
    """What to show of a video, by name; ``None`` where there is nothing to say."""
    count = None if info.frames is None else f"{'' if info.frames_exact else 'about '}{info.frames}"
    square = info.sample_aspect_ratio == 1
    return {
        "size": f"{info.width}x{info.height}",
        "rotation": f"{info.rotation} degrees clockwise" if info.rotation else None,
        "pixels": None if square else f"{info.sample_aspect_ratio} as wide as high",
        "frames": count,
        "rate": None if info.average_rate is None else f"{float(info.average_rate):g} frames/s",
        "duration": None if info.duration_s is None else f"{info.duration_s:.3f} s",
        "container": info.container,
        "codec": info.codec,
        "format": f"{info.pixel_format}, {info.bit_depth} bits{', alpha' if info.alpha else ''}",
        "colours": _colors(info),
        "HDR": _hdr(info),
        "interlaced": "yes" if info.interlaced else None,
        "audio": "; ".join(map(_stream, info.audio)) or "none",
        "subtitles": "; ".join(map(_stream, info.subtitles)) or None,
        "chapters": str(info.chapters) if info.chapters else None,
        "attachments": ", ".join(info.attachments) or None,
        "data": "; ".join(map(_stream, info.data)) or None,
        "warnings": "; ".join(info.warnings) or None,
    }


def _colors(info: "VideoInfo") -> str:
    """The tags, and in brackets what is taken for those that matter and are missing."""
    said = [f"{name} {tag}" for name, tag in info.color.names().items() if tag != "unknown"]
    used = info.color_used.names()
    guesses = [used[name] for name in ("matrix", "range") if f"{name} {used[name]}" not in said]
    text = ", ".join(said) or "not tagged"
    return f"{text} (taken as {', '.join(guesses)})" if guesses else text


def _hdr(info: "VideoInfo") -> str | None:
    """The transfer, if it is one of HDR, and what the file says of brightness."""
    from psssr_fast.video.hdr import HDR_NAMES

    name, display, light = (
        HDR_NAMES.get(info.color.transfer), info.mastering_display, info.light_level
    )  # fmt: skip
    parts = [name] if name else []
    if display is not None:
        low, high = float(display.min_luminance), float(display.max_luminance)
        parts.append(f"mastered on {low:g} to {high:g} cd/m2")
    if light is not None:
        parts.append(f"content up to {light.max_content} cd/m2, frames {light.max_average}")
    return ", ".join(parts) or None


def _stream(stream: "StreamInfo") -> str:
    details = [
        stream.codec,
        stream.language,
        None if stream.sample_rate is None else f"{stream.sample_rate} Hz",
        None if stream.channels is None else f"{stream.channels} channel(s)",
    ]
    return " ".join(detail for detail in details if detail is not None)
