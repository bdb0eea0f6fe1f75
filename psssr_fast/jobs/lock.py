"""One process at a time for a job, also where file locks lie and processes die."""

import contextlib
import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from psssr_fast.errors import OutputError
from psssr_fast.files import unlock
from psssr_fast.jobs.files import LOCK, job_folder
from psssr_fast.jobs.folder import JobFolder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BEAT = 10.0  # seconds between signs of life
SILENCE = 600.0  # seconds without one after which a process on another machine counts as dead
_TRIES = 20
_MAX_BYTES = 4096  # of a lock; it has about 200


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: its process.
        started: when that began, in ticks of the system: numbers of processes are used again.
        boot: which run of the system's kernel; containers share it.
        host: name of the machine.
        token: of this very lock.
    """

    pid: int
    started: int
    boot: str
    host: str
    token: str

    def __str__(self) -> str:
        return f"pid {self.pid}" + ("" if self.host == socket.gethostname() else f" on {self.host}")


def _started(pid: int) -> int:
    """When a process began; 0 where the system does not tell, -1 if it has gone or is a zombie."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return -1
        except OSError:
            return 0
        return 0
    try:
        # The name, in brackets, may hold anything; 20 fields after it comes the time.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return -1


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(folder: JobFolder) -> Owner | None:
    """Read who is named in the lock; ``None`` if nobody is, or not as this package does it.

    Raises:
        OutputError: the lock is no file of the job.
    """
    content = folder.read_own(LOCK, _MAX_BYTES)
    try:
        owner = Owner(**json.loads(content or b""))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (owner.boot, owner.host, owner.token)
    numbers = (owner.pid, owner.started)
    good = all(type(text) is str and text.isprintable() for text in texts)
    return owner if good and all(type(n) is int and -1 <= n < 2**63 for n in numbers) else None


def _alive(owner: Owner, folder: JobFolder) -> bool:
    if owner.boot == _boot() and (owner.boot or owner.host == socket.gethostname()):
        return owner.started == _started(owner.pid)
    if owner.host == socket.gethostname():
        return False  # the machine was started anew since
    silence = _silence(folder)
    # A sign of life from the future is none: the clock that is compared with is the same one.
    return silence is not None and -SILENCE < silence < SILENCE


def _silence(folder: JobFolder) -> float | None:
    """Return the seconds since the lock's last sign of life, by the clock of its file system."""
    lock = folder.stat(LOCK)
    if lock is None:
        return None
    now = time.time()
    with contextlib.suppress(OSError):
        now = folder.clock()
    return now - lock.st_mtime


def holder(folder: JobFolder) -> Owner | None:
    """Return who is at work on the job of a folder, if anybody is.

    Raises:
        OutputError: the lock is no file of the job.
    """
    owner = _read(folder)
    return owner if owner is not None and _alive(owner, folder) else None


def locked(output: str | Path, owner: Owner | None) -> OutputError:
    """Return the error that says who is at work on an output, and what to do if it is not so."""
    by = "another process" if owner is None else str(owner)
    remedy = "Wait for it, or choose another name."
    if owner is not None and owner.host != socket.gethostname():
        remedy += (
            f" If {owner.host} does not run it any more, wait {SILENCE / 60:.0f} minutes after its "
            f"last sign of life, or remove {job_folder(output) / LOCK}."
        )
    return OutputError(f"{output}: locked by {by}, which is making it. {remedy}")


class JobLock:
    """Exclusive use of a job's folder. A context manager.

    A file names the owner. The system's file lock on it decides races; whether an owner that is
    named still lives decides where file locks do nothing. Should both fail, :meth:`check` before
    every step that others can see notices, and two processes would write the same bytes anyway.

    Args:
        path: of the job's folder; made if it is not there.
        output: what it makes, for messages.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self._path, self._output = path, output
        self._folder: JobFolder | None = None
        self._descriptor: int | None = None
        self._beaten = 0.0
        self.owner = Owner(
            os.getpid(), _started(os.getpid()), _boot(), socket.gethostname(), secrets.token_hex(8)
        )
        self._content = json.dumps(asdict(self.owner)).encode()

    @property
    def folder(self) -> JobFolder:
        """The job's folder, open while the lock is held."""
        assert self._folder is not None, "use the lock as a context manager"
        return self._folder

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            OutputError: another process has it, or the folder or the lock is not ours to use.
        """
        for _ in range(_TRIES):
            folder = JobFolder.make(self._path)
            if folder is None:
                continue  # its owner has just finished, and removed it
            try:
                if self._take_in(folder):
                    return self
            except BaseException:
                folder.close()
                raise
            folder.close()
        with JobFolder.find(self._path) or contextlib.nullcontext() as found:
            owner = None if found is None else _read(found)
        raise self._locked(owner)

    def __exit__(self, *error: object) -> None:
        """Give it back; the file stays, unless the job has removed it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if _read(self.folder) == self.owner:
                    os.ftruncate(self._descriptor, 0)
            unlock(self._descriptor)
            with contextlib.suppress(OSError):  # network disks report late errors here
                os.close(self._descriptor)
            self._descriptor = None
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def check(self) -> None:
        """Make sure that the lock is still ours, and give a sign of life.

        Raises:
            OutputError: it was taken over.
        """
        owner = _read(self.folder)
        if owner != self.owner:
            raise self._locked(owner)
        self.beat()

    def beat(self) -> None:
        """Give a sign of life, at most every few seconds."""
        now = time.monotonic()
        if now - self._beaten > BEAT and self._descriptor is not None:
            self._beaten = now
            with contextlib.suppress(OSError):
                # Through the descriptor where that can be: never the time of what a link names.
                os.utime(self._descriptor if os.utime in os.supports_fd else self._path / LOCK)

    def _take_in(self, folder: JobFolder) -> bool:
        """Take the lock in a folder; ``False`` to try again."""
        try:
            with contextlib.suppress(FileExistsError):
                os.close(folder.create(LOCK, 0o600))
            descriptor = folder.open_own(LOCK, writing=True)
        except FileNotFoundError:  # the folder, or the lock, was removed by its owner
            return False
        try:
            if self._take(folder, descriptor):
                self._folder, self._descriptor = folder, descriptor
                return True
        except BaseException:
            with contextlib.suppress(OSError):  # or the lock would name this living process
                if os.pread(descriptor, _MAX_BYTES, 0) == self._content:
                    os.ftruncate(descriptor, 0)
            os.close(descriptor)
            raise
        os.close(descriptor)
        return False

    def _take(self, folder: JobFolder, descriptor: int) -> bool:
        """Whether the lock is ours now; ``False`` to try again."""
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._locked(_read(folder)) from None
            except OSError:  # this file system has no locks
                pass
        named = _read(folder)
        if named is not None and _alive(named, folder):
            raise self._locked(named)
        found = folder.stat(LOCK)
        if found is None or not os.path.samestat(found, os.fstat(descriptor)):
            return False  # removed by its owner between our opening and our locking it
        os.pwrite(descriptor, self._content, 0)
        os.ftruncate(descriptor, len(self._content))
        os.fsync(descriptor)
        return _read(folder) == self.owner

    def _locked(self, owner: Owner | None) -> OutputError:
        return locked(self._output, owner)
