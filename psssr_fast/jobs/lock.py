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
from psssr_fast.jobs.files import LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BEAT = 10.0  # seconds between signs of life
SILENCE = 600.0  # seconds without one after which a process on another machine counts as dead
_TRIES = 20


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


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _alive(owner: Owner, path: Path) -> bool:
    if owner.boot == _boot() and (owner.boot or owner.host == socket.gethostname()):
        return owner.started == _started(owner.pid)
    if owner.host == socket.gethostname():
        return False  # the machine was started anew since
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime < SILENCE
    return False


def holder(folder: Path) -> Owner | None:
    """Who is at work on the job of a folder."""
    path = folder / LOCK
    owner = _read(path)
    return owner if owner is not None and _alive(owner, path) else None


def locked(output: str | Path, owner: Owner | None) -> OutputError:
    """The error that says who is at work on an output."""
    by = "another process" if owner is None else str(owner)
    return OutputError(
        f"{output}: locked by {by}, which is making it. Wait for it, or choose another name."
    )


class JobLock:
    """Exclusive use of a job's folder.

    A file names the owner. The system's file lock on it decides races; whether an owner that is
    named still lives decides where file locks do nothing. Should both fail, :meth:`check` before
    every step that others can see notices, and two processes would write the same bytes anyway.

    Args:
        folder: of the job; made if it is not there.
        output: what it makes, for messages.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self._folder, self._output = folder, output
        self._path = folder / LOCK
        self._descriptor: int | None = None
        self._beaten = 0.0
        self.owner = Owner(
            os.getpid(), _started(os.getpid()), _boot(), socket.gethostname(), secrets.token_hex(8)
        )

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            OutputError: another process has it.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir()
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # its owner has just finished, and removed the folder
                continue
            try:
                if self._take(descriptor):
                    self._descriptor = descriptor
                    return self
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise self._locked(_read(self._path))

    def __exit__(self, *error: object) -> None:
        """Give it back; the file stays, unless the job has removed it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if _read(self._path) == self.owner:
                    os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def check(self) -> None:
        """Make sure that the lock is still ours, and give a sign of life.

        Raises:
            OutputError: it was taken over.
        """
        owner = _read(self._path)
        if owner != self.owner:
            raise self._locked(owner)
        self.beat()

    def beat(self) -> None:
        """Give a sign of life, at most every few seconds."""
        now = time.monotonic()
        if now - self._beaten > BEAT:
            self._beaten = now
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _take(self, descriptor: int) -> bool:
        """Whether the lock is ours now; ``False`` to try again."""
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._locked(_read(self._path)) from None
            except OSError:  # this file system has no locks
                pass
        named = _read(self._path)
        if named is not None and _alive(named, self._path):
            raise self._locked(named)
        try:
            if os.fstat(descriptor).st_ino != self._path.stat().st_ino:
                return False  # removed by its owner between our opening and our locking it
        except FileNotFoundError:
            return False
        content = json.dumps(asdict(self.owner)).encode()
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
        return _read(self._path) == self.owner

    def _locked(self, owner: Owner | None) -> OutputError:
        return locked(self._output, owner)
