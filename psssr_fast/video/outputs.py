"""Where an output is to be: a video file, or a folder of PNG frames."""

import os
from pathlib import Path

from psssr_fast.errors import OutputError, UsageError
from psssr_fast.video.encoder import CONTAINERS
from psssr_fast.video.images import is_image_source


def is_image_output(path: str | Path) -> bool:
    """Whether an output path means a folder of PNG frames: a folder, ``.../``, or no extension."""
    return str(path).endswith(("/", os.sep)) or os.path.isdir(path) or not Path(path).suffix


def check_output(path: str | Path, source: str | Path, overwrite: bool = False) -> None:
    """Find out before any work whether an output can be put there; touches nothing on the disk.

    What concerns the encoder and the sound is found out when the job is entered, which is also
    before the first frame.

    Args:
        path: a video file, or a folder for PNG frames; see :func:`is_image_output`.
        source: the input.
        overwrite: whether an existing output may be replaced.

    Raises:
        UsageError: unknown extension, or the output is the input.
        OutputError: it exists, or its folder is missing or read-only.
    """
    target = Path(path)
    images = is_image_output(path)
    if not images and target.suffix.lower() not in CONTAINERS:
        raise UsageError(
            f"{path}: no video format {target.suffix!r}; known: {', '.join(CONTAINERS)}. End the "
            "name with / to write a folder of PNG frames."
        )
    if os.path.lexists(target):
        if os.path.exists(target) and _is_input(target, Path(source)):
            raise UsageError(f"{path}: the output is the input. Choose another name.")
        _check_existing(target, images, overwrite)
    parent = target.parent
    if not os.path.isdir(parent):
        raise OutputError(f"{path}: there is no folder {parent}. Make it first.")
    place = target if os.path.isdir(target) else parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {place}. Choose another folder.")


def _is_input(target: Path, source: Path) -> bool:
    """Whether an output is the input: the same file, or the folder of a pattern's frames."""
    if not os.path.exists(source):
        source = source.parent if is_image_source(source) else source
    return os.path.exists(source) and target.samefile(source)


def _check_existing(target: Path, images: bool, overwrite: bool) -> None:
    if images and not os.path.isdir(target):
        raise OutputError(f"{target}: a file, not a folder. Choose another name for the folder.")
    if not images and not os.path.isfile(target):
        raise OutputError(f"{target}: not a regular file. Choose another name.")
    if overwrite:
        return
    if not images:
        raise OutputError(f"{target}: exists already. Pass --overwrite or choose another name.")
    if any(item.suffix.lower() == ".png" for item in target.iterdir()):
        raise OutputError(
            f"{target}: holds PNG files already. Pass --overwrite or choose another folder."
        )
