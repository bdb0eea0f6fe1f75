"""Files in folders where other users may write: no link is followed, nothing is replaced unasked.

A :class:`Folder` holds a descriptor, so it stays the same folder when its name is given to another
one. Files in it are reached by plain names relative to that descriptor.
"""

import contextlib
import ctypes
import errno
import functools
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_RENAME_NOREPLACE = 1  # of renameat2(2)
_NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
_ONLY_NAMES = getattr(os, "O_PATH", None)
_AT_DESCRIPTOR = os.open in os.supports_dir_fd  # false on Windows, where paths must do


class NotRegular(OSError):
    """A name stands for something else than a regular file: a link, a FIFO, a device, a folder."""


def is_plain_name(name: str) -> bool:
    """Return whether ``name`` names a file of one folder: no path, no ``..``, no NUL."""
    separators = {"/", "\0", os.sep, os.altsep or os.sep}
    return name not in ("", ".", "..") and not separators & set(name)


class Folder:
    """An open folder, and what can be done with the names in it. A context manager.

    Args:
        path: where it is; for messages, and on systems that cannot open folders.
        follow: whether ``path`` itself may be a link to a folder.
        within: descriptor of the folder that a relative ``path`` begins in; the current one if left
            out.

    Raises:
        OSError: there is no such folder, or it may not be read.
        NotADirectoryError: ``path`` is a link and may not be one, or is no folder.
    """

    def __init__(self, path: Path, follow: bool = True, within: int | None = None) -> None:
        self.path = path
        self.descriptor: int | None = None
        self._may_sync = True
        if _AT_DESCRIPTOR:
            flags = os.O_DIRECTORY | FLAGS | (0 if follow else os.O_NOFOLLOW)
            try:
                self.descriptor = os.open(path, flags | os.O_RDONLY, dir_fd=within)
            except PermissionError:
                if _ONLY_NAMES is None or not follow:
                    raise
                # A folder to drop files into, which may not be read; nor can it be synced.
                self._may_sync = False
                self.descriptor = os.open(path, flags | _ONLY_NAMES, dir_fd=within)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            unlock(descriptor)
            with contextlib.suppress(OSError):  # nothing was written through it
                os.close(descriptor)

    def around(self) -> "Folder":
        """Open the folder that this one is in now, whatever its name has become."""
        if self.descriptor is None:
            return Folder(self.path.parent)
        return Folder(Path(".."), within=self.descriptor)

    def is_at(self, path: Path) -> bool:
        """Return whether a path leads to this folder."""
        try:
            found = os.stat(path)
        except OSError:
            return False
        return self.descriptor is None or os.path.samestat(found, os.fstat(self.descriptor))

    def free_bytes(self) -> int:
        """Return how many bytes may still be written on its file system."""
        return shutil.disk_usage(self.path if self.descriptor is None else self.descriptor).free

    def is_beside(self, other: "Folder") -> bool:
        """Return whether two folders lie on one file system, so that files can be moved."""
        if self.descriptor is None or other.descriptor is None:
            return True
        return os.fstat(self.descriptor).st_dev == os.fstat(other.descriptor).st_dev

    def at(self, name: str) -> str | Path:
        """Return what names a file for calls with ``dir_fd=folder.descriptor``.

        Raises:
            ValueError: ``name`` is no plain name.
        """
        if not is_plain_name(name):
            raise ValueError(f"not the name of a file: {name!r}")
        return name if self.descriptor is not None else self.path / name

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        return sorted(os.listdir(self.path if self.descriptor is None else self.descriptor))

    def stat(self, name: str) -> os.stat_result | None:
        """Return what is known of a name, links not followed; ``None`` if nothing is there."""
        try:
            return os.stat(self.at(name), dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def create(self, name: str, mode: int = 0o666) -> int:
        """Create a file that was not there, and return a descriptor to read and write it.

        Raises:
            FileExistsError: something has the name, if only a dangling link.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINKS | FLAGS
        return os.open(self.at(name), flags, mode, dir_fd=self.descriptor)

    def open_regular(self, name: str, writing: bool = False) -> int:
        """Open a file that is there, and return its descriptor.

        Args:
            name: of the file.
            writing: open it to read and write; then it must have no other name (hard link).

        Raises:
            NotRegular: it is no regular file, or has other names.
            FileNotFoundError: nothing has the name.
        """
        before = os.stat(self.at(name), dir_fd=self.descriptor, follow_symlinks=False)
        self._check_regular(name, before, writing)  # first: opening a device may act on it
        flags = (os.O_RDWR if writing else os.O_RDONLY) | _NO_LINKS | FLAGS
        try:
            descriptor = os.open(self.at(name), flags, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # became a link or a FIFO since
                raise NotRegular(
                    errno.EINVAL, "is no regular file", str(self.path / name)
                ) from None
            raise
        try:
            self._check_regular(name, os.fstat(descriptor), writing)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check_regular(self, name: str, found: os.stat_result, writing: bool) -> None:
        reason = None
        if not stat.S_ISREG(found.st_mode):
            reason = f"is {kind_of(found.st_mode)}, not a regular file"
        elif writing and found.st_nlink > 1:
            reason = "is a hard link: the same file has another name"
        if reason is not None:
            raise NotRegular(errno.EINVAL, reason, str(self.path / name))

    def unlink(self, name: str) -> None:
        """Remove a name, if it is there; of a link the link itself."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.at(name), dir_fd=self.descriptor)

    def replace(self, name: str, new: str) -> None:
        """Give a file another name in this folder, in place of what has that name."""
        where = self.descriptor
        os.replace(self.at(name), self.at(new), src_dir_fd=where, dst_dir_fd=where)

    def publish(self, name: str, target: "Folder", new: str, replace: bool = False) -> None:
        """Move a finished file to its place in one step.

        Args:
            name: of the file in this folder.
            target: folder of its place, on the same file system.
            new: its name there.
            replace: whether what has that name may be replaced.

        Raises:
            FileExistsError: something has that name and may not be replaced; nothing was changed.
        """
        here, there = self.at(name), target.at(new)
        if replace:
            os.replace(here, there, src_dir_fd=self.descriptor, dst_dir_fd=target.descriptor)
        elif not _rename_new(here, self.descriptor, there, target.descriptor):
            self._link_new(name, target, new)

    def _link_new(self, name: str, target: "Folder", new: str) -> None:
        here, there = self.at(name), target.at(new)
        where = {"src_dir_fd": self.descriptor, "dst_dir_fd": target.descriptor}
        try:
            os.link(here, there, **where, follow_symlinks=False)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):
            # Neither renameat2 nor hard links (some network and flash file systems): what remains
            # is to look just before.
            if target.stat(new) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
            os.replace(here, there, **where)
        else:
            self.unlink(name)

    def lock(self) -> None:
        """Keep other processes from locking the folder, by whatever name, until it is closed.

        Raises:
            BlockingIOError: another process has locked it.
        """
        if fcntl is not None and self.descriptor is not None:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # this file system has no locks
                return

    def sync(self) -> None:
        """Make the names in the folder survive a power cut, where the system can."""
        if self.descriptor is None or not self._may_sync:
            return
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise

    def clock(self) -> float:
        """Return the time by the clock that dates the folder's files, seconds since 1970.

        Raises:
            OSError: no file can be made there.
        """
        made = self._try_file()
        if made is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        return made.st_mtime

    def foreign_to(self, user: int) -> str | None:
        """Return who else could have put files here, in words; ``None`` if it is only ``user``.

        File systems that keep no owners or modes show the same ones for every file. What they show
        for a file that this process makes counts as its own.
        """
        if self.descriptor is None or not hasattr(os, "geteuid"):
            return None
        found = os.fstat(self.descriptor)
        if found.st_uid == user and not found.st_mode & 0o022:
            return None
        ours = self._try_file()
        if ours is None or found.st_uid != ours.st_uid:
            return f"it belongs to another user (number {found.st_uid})"
        if found.st_mode & 0o022 and not ours.st_mode & 0o022:
            return f"other users may write in it (mode {stat.S_IMODE(found.st_mode):03o})"
        return None

    def _try_file(self) -> os.stat_result | None:
        """What is told of a file that this process makes in the folder; none is left there."""
        unnamed = getattr(os, "O_TMPFILE", None)
        if unnamed is not None:  # which does not even change the folder's times
            with contextlib.suppress(OSError):
                flags = unnamed | os.O_RDWR | FLAGS
                descriptor = os.open(".", flags, 0o600, dir_fd=self.descriptor)
                try:
                    return os.fstat(descriptor)
                finally:
                    os.close(descriptor)
        name = f"try-{secrets.token_hex(8)}"
        try:
            descriptor = self.create(name, 0o600)
        except OSError:
            return None
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)
            self.unlink(name)


def kind_of(mode: int) -> str:
    """Return what a mode of stat(2) says that something is, in words."""
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    )  # fmt: skip
    return next((name for test, name in kinds if test(mode)), "something else")


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The C library's ``renameat2``, where there is one."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (
            ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
        )  # fmt: skip
    return function


def _rename_new(here: str | Path, old: int | None, there: str | Path, new: int | None) -> bool:
    """Rename without replacing; ``False`` where the system cannot, and then nothing was done."""
    rename = _renameat2()
    if rename is None or old is None or new is None:
        return False
    if rename(old, os.fsencode(here), new, os.fsencode(there), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number), str(there))


def unlock(descriptor: int) -> None:
    """Give up a lock, also for processes that were forked while it was held and still live."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
