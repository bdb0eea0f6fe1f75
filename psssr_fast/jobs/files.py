"""Where a job keeps its files, and how errors of the disk are told."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import av

from psssr_fast.errors import OutOfMemory, OutputError, lacks_memory

PLAN, JOURNAL, LOCK, DONE = "plan.json", "journal.jsonl", "lock", "done.json"
_LONGEST_NAME = 255  # bytes; what nearly all file systems allow
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def place_of(path: str | Path) -> Path:
    """Return the absolute path of a file that need not be there; one for all ways to its folder.

    A link in the last place stays one.
    """
    name = Path(path).name
    if name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(Path(path).parent), name)


def job_folder(output: str | Path) -> Path:
    """Return where the job of an output keeps its files: ``.NAME.psssr-job`` beside it."""
    path = place_of(output)
    name = f".{path.name}.psssr-job"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        name = f".{path.name[:40]}-{digest}.psssr-job"
    return path.with_name(name)


def write_all(file: io.FileIO, content: bytes) -> None:
    """Write all of ``content`` to an unbuffered file, which may take it in pieces."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]


def readable(count: int) -> str:
    """``1.5 GB``."""
    amount, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"


@contextlib.contextmanager
def storing(output: Path, needed: Callable[[], int | None]) -> Iterator[None]:
    """Report what the disk and FFmpeg raise as :class:`OutputError`, in one line.

    Args:
        output: what is being made.
        needed: how many more bytes the job needs, about; ``None`` if nothing tells.

    Raises:
        OutputError: the output cannot be written.
        OutOfMemory: there is no memory, or no more threads, to write it with.
    """
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, OutputError):
            raise
        reason = error.strerror or str(error)
        if lacks_memory(error):
            raise OutOfMemory(
                f"{output}: no memory or threads left to write it: {reason}. End other programs; "
                "the same command goes on from what is kept."
            ) from error
        if error.errno not in _FULL:
            raise OutputError(
                f"{output}: cannot be written: {reason}. Check the folder; the same command goes "
                "on from what is kept."
            ) from error
        bytes_needed, free = needed(), "little"
        about = "" if bytes_needed is None else f"about {readable(bytes_needed)} more needed, "
        with contextlib.suppress(OSError):  # the folder may have been moved
            free = readable(shutil.disk_usage(output.parent).free)
        raise OutputError(
            f"{output}: cannot be written: {reason}. Free some space and run the same command "
            f"again: {about}{free} free in {output.parent}."
        ) from error
