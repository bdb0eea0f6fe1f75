"""Whole files, inputs and new folders: each appears completely, and nothing is waited for."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from psssr_fast.files.folder import FLAGS, Folder, NotRegular, is_plain_name, kind_of


def open_input(path: Path) -> BufferedReader:
    """Open a file to read, links followed; never wait, as opening a FIFO would.

    Raises:
        NotRegular: it is no regular file.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | FLAGS
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, f"it is {kind_of(mode)}, not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


@contextlib.contextmanager
def whole_file(path: Path, replace: bool) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is complete and on the disk.

    A device or a FIFO that may be replaced is written to as it is. A file keeps its mode; a link is
    replaced, and not what it names.

    Args:
        path: where it is to be.
        replace: whether what has that name may be replaced.

    Yields:
        A file to write to, which has another name in the same folder so far. An exception in the
        block removes it.

    Raises:
        FileExistsError: something has the name and may not be replaced.
        OSError: it cannot be written.
    """
    if not is_plain_name(path.name):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if replace and os.path.exists(path) and not os.path.isfile(path):
        with path.open("wb") as stream:
            yield stream
        return
    with Folder(path.absolute().parent) as folder:
        if not replace and folder.stat(path.name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary = f".psssr-{secrets.token_hex(8)}.partial"
        with os.fdopen(folder.create(temporary), "w+b") as file:
            try:
                _keep_mode(folder.stat(path.name), file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
                folder.publish(temporary, folder, path.name, replace)
            except BaseException:
                with contextlib.suppress(OSError):
                    folder.unlink(temporary)
                raise
        folder.sync()


@contextlib.contextmanager
def appended(path: Path) -> Iterator[BinaryIO]:
    """Add to the end of a file, which is made if it is not there; never through a link.

    Raises:
        NotRegular: something else has the name.
        OSError: it cannot be written.
    """
    with Folder(path.absolute().parent) as folder:
        with contextlib.suppress(FileExistsError):
            os.close(folder.create(path.name))
        with os.fdopen(folder.open_regular(path.name, writing=True), "r+b") as file:
            file.seek(0, os.SEEK_END)
            yield file


def _keep_mode(before: os.stat_result | None, descriptor: int) -> None:
    if before is not None and stat.S_ISREG(before.st_mode) and hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):  # some file systems have none
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def path_to(file: BinaryIO, otherwise: Path) -> Path:
    """Return a path by which other code can open the very file that is open here.

    Args:
        file: an open file.
        otherwise: the path to take where the system has none for descriptors.
    """
    link = Path(f"/proc/self/fd/{file.fileno()}")
    return link if link.exists() else otherwise


def make_folders(path: Path) -> None:
    """Make a folder and those around it that are missing; their names survive a power cut.

    Raises:
        OSError: one cannot be made, or something else has its name.
    """
    if path.is_dir():
        return
    make_folders(path.absolute().parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    with Folder(path.absolute().parent) as parent:
        parent.sync()
