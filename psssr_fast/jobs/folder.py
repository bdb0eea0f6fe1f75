"""The hidden folder of a job: proven to be this user's own before a file in it is trusted.

Whoever can write beside the output, as in ``/tmp``, can put something else in its place. So the
folder is made for its user alone, its files are reached by descriptor and without following links,
and only names that a job makes are ever removed.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from psssr_fast.errors import OutputError
from psssr_fast.faults import fault
from psssr_fast.files import Folder, NotRegular
from psssr_fast.jobs.files import DONE, LOCK, write_all

MAX_PLAN = 2**22  # bytes; a plan has some kB
_MAKES = re.compile(
    r"plan\.json|journal\.jsonl|done\.json|chunk-\d{6,9}"
    r"|(plan\.json|done\.json|chunk-\d{6,9}|try|output)\.partial-\d{1,10}"
    r"|try-[0-9a-f]{16}"
)


class JobFolder(Folder):
    """A job's folder, open. A context manager.

    Args:
        path: of the folder; see :func:`psssr_fast.jobs.files.job_folder`.

    Raises:
        FileNotFoundError: there is none.
        OutputError: what is there is not a folder that this user alone may write.
    """

    def __init__(self, path: Path) -> None:
        found = os.stat(path, follow_symlinks=False)
        try:
            if not stat.S_ISDIR(found.st_mode):
                link = stat.S_ISLNK(found.st_mode)
                raise refused(path, f"it is {'a link' if link else 'a file'}, not a folder")
            super().__init__(path, follow=False)
        except NotADirectoryError as error:
            raise refused(path, "it is no folder") from error
        except PermissionError as error:
            raise refused(path, "it may not be read: permission denied") from error
        user = os.geteuid() if hasattr(os, "geteuid") else 0
        try:
            reason = self.foreign_to(user)
            if reason is not None:
                ours = found.st_uid == user
                raise refused(
                    path, reason, f"If all in it is yours, chmod go-w {path}" if ours else ""
                )
        except BaseException:
            self.close()
            raise

    @classmethod
    def find(cls, path: Path) -> "JobFolder | None":
        """Open the folder if there is one.

        Raises:
            OutputError: see the class.
        """
        try:
            return cls(path)
        except (FileNotFoundError, NotADirectoryError):  # the latter: it would lie under a file
            return None

    @classmethod
    def make(cls, path: Path) -> "JobFolder | None":
        """Open the folder; make it first if there is none, so that its name survives a power cut.

        Returns:
            ``None`` if another process has removed the folder in this very moment: try again.

        Raises:
            OSError: no folder can be made there.
            OutputError: see the class.
        """
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
            fault("folder-made")
        # Also when it was there: whoever made it may have been killed before this.
        with Folder(path.parent) as parent:
            parent.sync()
            folder = cls.find(path)
            if folder is not None and not folder.is_beside(parent):
                folder.close()
                raise refused(path, "it lies on another file system, as a mount point does")
        return folder

    def open_own(self, name: str, writing: bool = False) -> int:
        """Open a file of the job.

        Raises:
            OutputError: the name stands for a link, a FIFO, a device or another user's file.
            FileNotFoundError: nothing has the name.
        """
        with self._refusing():
            descriptor = self.open_regular(name, writing)
            try:
                self._check_owner(name, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def read_own(self, name: str, limit: int) -> bytes | None:
        """Return the content of a file of the job; ``None`` if it is not there.

        Raises:
            OutputError: as :meth:`open_own`, or it has more than ``limit`` bytes.
        """
        try:
            with os.fdopen(self.open_own(name), "rb") as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            return None
        if len(content) > limit:
            raise refused(self.path / name, f"it has more than {limit} bytes")
        return content

    def has(self, name: str) -> bool:
        """Return whether anything has a name, be it a dangling link."""
        return self.stat(name) is not None

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of a file of the job, hexadecimal; ``None`` if it is not there."""
        try:
            descriptor = self.open_own(name)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a small file: it is there completely, also after a power cut, or not at all."""
        temporary = f"{name}.partial-{os.getpid()}"
        self.unlink(temporary)
        with os.fdopen(self.create(temporary), "wb", buffering=0) as file:
            write_all(file, content)
            os.fsync(file.fileno())
        fault(f"{Path(name).stem}-written")
        self.replace(temporary, name)
        self.sync()

    def sweep(self, *kept: str) -> None:
        """Remove all files of the job but the lock and those named."""
        for name in self.names():
            if name not in (LOCK, *kept):
                self._remove(name)

    def clear(self, keep_lock: bool) -> tuple[str, ...]:
        """Remove the files of the job, the note of what was made last.

        Args:
            keep_lock: leave the lock, and with it the folder, to whoever holds it.

        Returns:
            Names of files that no job makes, which stay.
        """
        for name in self.names():
            if name not in (DONE, LOCK):
                fault("clearing")
                self._remove(name)
        self.sync()  # or a power cut might keep the others, and lose the note that explains them
        self._remove(DONE)
        fault("cleared")
        if not keep_lock:
            self.unlink(LOCK)
            self._remove_folder()
        return tuple(name for name in self.names() if name != LOCK) if keep_lock else ()

    def _remove(self, name: str) -> None:
        if _MAKES.fullmatch(name):
            with contextlib.suppress(IsADirectoryError, PermissionError):  # a folder: a stranger's
                self.unlink(name)

    def _remove_folder(self) -> None:
        with self.around() as parent:
            now = parent.stat(self.path.name)
            if now is None or self.descriptor is None or not self._is(now):
                return  # its name stands for something else by now
            try:
                os.rmdir(parent.at(self.path.name), dir_fd=parent.descriptor)
            except OSError:  # strangers' files; or another process has come, and waits at the lock
                return
            parent.sync()

    def _is(self, found: os.stat_result) -> bool:
        assert self.descriptor is not None
        return os.path.samestat(found, os.fstat(self.descriptor))

    def _check_owner(self, name: str, descriptor: int) -> None:
        if self.descriptor is None:
            return
        owner, ours = os.fstat(descriptor).st_uid, os.fstat(self.descriptor).st_uid
        if owner != ours:
            raise refused(self.path / name, f"it belongs to another user (number {owner})")

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except NotRegular as error:
            raise refused(Path(error.filename), f"it {error.strerror}") from error


def refused(path: Path, reason: str, remedy: str = "") -> OutputError:
    """Return the error that says why a file or folder of a job is not trusted.

    Args:
        path: of it.
        reason: why, as the end of a sentence.
        remedy: what else can be done but to remove it.
    """
    remove = f"{remedy}, and run the same command again; or remove it" if remedy else "Remove it"
    return OutputError(
        f"{path}: not used for the job: {reason}. Nothing of it was touched. {remove}, or choose "
        "another name for the output."
    )
