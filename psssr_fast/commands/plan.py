"""Which inputs become which outputs."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psssr_fast.errors import OutputError, UsageError
from psssr_fast.files import make_folders

# What counts as a video when a folder is given; a file that is named is always tried.
VIDEO_SUFFIXES = frozenset(
    {
        ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
        ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
_FALLBACK_SUFFIX = ".mp4"
_OUR_TAG = re.compile(r"\.psssr[\d.]+[xp]$")


@dataclass(frozen=True)
class Job:
    """One video to make.

    Attributes:
        input, output: as the user would write them; a folder of PNG frames to write ends in ``/``.
    """

    input: str
    output: str

    @property
    def name(self) -> str:
        """What to call it where space is short."""
        return Path(self.input).name


@dataclass(frozen=True)
class Target:
    """How large the output is to be.

    Attributes:
        scale: output over input size, or
        height: output height in pixels; neither is 4 times.
    """

    scale: float | None
    height: int | None

    def __post_init__(self) -> None:
        if self.scale is not None and self.height is not None:
            raise UsageError("--scale and --height exclude each other; give one of them")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise UsageError(f"--scale must be a positive number; got {self.scale:g}")
        if self.height is not None and self.height < 1:
            raise UsageError(f"--height must be at least 1 pixel; got {self.height}")

    @property
    def tag(self) -> str:
        """What the names of outputs get: ``.psssr4x``, ``.psssr2160p``."""
        if self.height is not None:
            return f".psssr{self.height}p"
        return f".psssr{4.0 if self.scale is None else self.scale:g}x"


def plan_jobs(inputs: Sequence[str], output: str | None, target: Target) -> tuple[Job, ...]:
    """One job for each input; for a folder of videos one for each of them.

    Args:
        inputs: files, folders of PNG frames, folders of videos.
        output: of the only input; of several inputs the folder to put outputs in, which is made
            if it is not there. By default outputs lie beside their inputs.
        target: size, for the names of outputs.

    Raises:
        UsageError: ``output`` does not fit the inputs, or two outputs would be the same file.
        InputError: a folder cannot be listed.
        OutputError: the folder for the outputs cannot be made.
    """
    sources = [(source, name) for name in inputs for source in _videos_in(name)]
    several = len(sources) > 1 or any(source != name for source, name in sources)
    if output is not None and not several:
        return (Job(sources[0][0], output),)
    folder = None if output is None else _output_folder(output)
    jobs = tuple(Job(source, _default_output(source, target.tag, folder)) for source, _ in sources)
    taken: dict[str, Job] = {}
    for job in jobs:
        twin = taken.setdefault(os.path.abspath(job.output), job)
        if twin is not job:
            raise UsageError(
                f"{twin.input} and {job.input} would both become {job.output}; run them one by one "
                "with -o"
            )
    return jobs


def _videos_in(name: str) -> list[str]:
    """The videos of a folder of videos, our own outputs left out, or else just ``name``."""
    from psssr_fast.video.container import check_readable

    folder = Path(name)
    if not os.path.isdir(name):  # that of Path raises for names that the system refuses
        return [name]
    check_readable(name)
    visible = [file for file in folder.iterdir() if file.name[0] != "." and file.is_file()]
    videos = [
        file
        for file in visible
        if file.suffix.lower() in VIDEO_SUFFIXES and not _OUR_TAG.search(file.stem)
    ]
    if videos and any(file.suffix.lower() == ".png" for file in visible):
        raise UsageError(
            f"{name}: holds both PNG frames and videos; name the videos, or move them elsewhere"
        )
    return [str(file) for file in sorted(videos)] or [name]


def _output_folder(output: str) -> Path:
    from psssr_fast.video.encoder import CONTAINERS

    folder = Path(output)
    if not os.path.isdir(folder) and (
        os.path.exists(folder) or folder.suffix.lower() in CONTAINERS
    ):
        raise UsageError(f"{output}: -o must be a folder, because there are several inputs")
    try:
        make_folders(folder)
    except OSError as error:
        raise OutputError(f"{output}: cannot make the folder: {error.strerror}") from error
    except ValueError as error:  # a NUL
        raise UsageError(f"{output}: no folder can have this name: {error}") from error
    return folder


def _default_output(source: str, tag: str, folder: Path | None) -> str:
    from psssr_fast.video.encoder import CONTAINERS
    from psssr_fast.video.images import is_image_source

    path = Path(source)
    if is_image_source(source):
        frames = path if os.path.isdir(path) else path.parent
        # resolve(): "." has no name of its own
        frames = frames if frames.name not in ("", "..") else frames.resolve()
        return f"{(folder or frames.parent) / frames.name}{tag}/"
    suffix = path.suffix if path.suffix.lower() in CONTAINERS else _FALLBACK_SUFFIX
    return str((folder or path.parent) / f"{path.stem}{tag}{suffix}")
