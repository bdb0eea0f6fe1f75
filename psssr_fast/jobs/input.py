"""The input of a job: what names its content, and whether it is still the same one."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from psssr_fast.errors import InputError
from psssr_fast.files import open_input
from psssr_fast.video.images import is_image_source, list_images


@dataclass(frozen=True)
class Source:
    """The input.

    Attributes:
        name: of the file or folder.
        bytes: its size.
        mtime_ns: when it was changed last.
        sha256: of the file; of a folder, of the names and contents of its frames.
        frame_rate: of a folder of frames.
    """

    name: str
    bytes: int
    mtime_ns: int
    sha256: str
    frame_rate: str


@dataclass(frozen=True)
class Seen:
    """Which files an input was at one moment, told without reading them.

    Attributes:
        files: of each its device, number in the file system, bytes, and times of the last change
            of its content and of its description, ns; in order.
    """

    files: tuple[tuple[int, int, int, int, int], ...]


def look_at(path: str | Path) -> Seen | None:
    """Return which files an input is now; ``None`` if it is not there or may not be looked at."""
    try:
        files = list_images(path) if is_image_source(path) else [Path(path)]
        found = [os.stat(file) for file in files]
    except (OSError, ValueError):  # InputError is a ValueError
        return None
    return Seen(tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found))


def describe_source(path: str | Path, frame_rate: object) -> Source:
    """Read the input once, for its hash.

    Raises:
        InputError: it cannot be read any more.
    """
    source = Path(path)
    try:
        if not is_image_source(path):
            found = source.stat()
            return Source(source.name, found.st_size, found.st_mtime_ns, _sha256(source), "")
        files = list_images(path)
        total = hashlib.sha256()
        for file in files:
            total.update(f"{os.fsencode(file.name).hex()} {_sha256(file)}\n".encode())
        sizes = [file.stat() for file in files]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Check the file.") from error
    size, changed = sum(s.st_size for s in sizes), max(s.st_mtime_ns for s in sizes)
    return Source(source.name, size, changed, total.hexdigest(), str(frame_rate))


def _sha256(path: Path) -> str:
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class InputWatch:
    """Tells whether an input is the one that a job began with.

    Files that look the same are the same. Where something differs, if only a time, the content
    decides: a backup or an indexer may change what is told of a file, and not the file.

    Args:
        path: of the input.
        source: its content, as the plan has it.
        seen: what it was before it was first read.
    """

    def __init__(self, path: str | Path, source: Source, seen: Seen | None) -> None:
        self._path, self._source, self._seen = path, source, seen

    def is_unchanged(self) -> bool:
        """Return whether the content is the same as when the job began.

        Raises:
            InputError: it is not there any more, or cannot be read.
        """
        now = look_at(self._path)
        if now is not None and now == self._seen:
            return True
        if describe_source(self._path, self._source.frame_rate).sha256 != self._source.sha256:
            return False
        self._seen = now
        return True

    def is_untouched_since(self, seen: Seen | None) -> bool:
        """Return whether not even a time differs from ``seen``."""
        return seen is not None and look_at(self._path) == seen
