"""File operations of a job, counted, recorded and disturbed by ``interpose.c``."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[1]))

from job_fixtures import Done, Forks

SPACE = ("create", "truncate", "nameless", "write", "resize", "sync", "link", "mkdir")
ALL = (
    "create", "truncate", "nameless", "open", "write", "resize", "sync", "sync-folder", "mode",
    "close", "unlink", "rmdir", "mkdir", "times", "publish", "rename", "link",
)  # fmt: skip
"""Kinds of operations: those that a full disk refuses, and all."""

ERRORS = {
    "create": (errno.ENOSPC, errno.EACCES, errno.EINTR),
    "truncate": (errno.ENOSPC, errno.EACCES),
    "nameless": (errno.EOPNOTSUPP, errno.ENOSPC),
    "open": (errno.EACCES, errno.EIO),
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "resize": (errno.EIO,),
    "sync": (errno.EIO, errno.ENOSPC),
    "sync-folder": (errno.EIO,),
    "mode": (errno.EPERM,),
    "close": (errno.EIO,),
    "unlink": (errno.EIO, errno.EACCES),
    "rmdir": (errno.EIO,),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "times": (errno.EACCES,),
    "publish": (errno.EINVAL, errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC),
    "link": (errno.EPERM, errno.EIO, errno.ENOSPC),
}
"""What each kind of operation may fail with, all else being well."""

_OWN = re.compile(r"partial-\d+")  # temporary names end with the number of their process


@dataclass(frozen=True)
class Operation:
    """One call that changes files, or makes a change lasting.

    Attributes:
        number: of the operation, from 1.
        kind: one of :data:`ALL`.
        result: of the call; negative: number of the error.
        inode: number of the file or folder.
        path, second: names, absolute.
        offset: of a write, or the new size, bytes.
        content: what was written.
    """

    number: int
    kind: str
    result: int
    inode: int
    path: str
    second: str
    offset: int
    content: bytes


@dataclass(frozen=True)
class Disturbance:
    """What happens to one operation, and to those after it.

    Attributes:
        number: of the operation, from 1; 0 disturbs none.
        how: ``kill``, ``half``, ``short`` or ``error``; see ``interpose.c``.
        error: number of the error.
        later: kinds of later operations that fail with ``error``.
    """

    number: int = 0
    how: str = ""
    error: int = 0
    later: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "")
        return f"{self.number}-{self.how}{name and '-' + name}{'-onwards' if self.later else ''}"


NONE = Disturbance()


def read_operations(record: Path) -> list[Operation]:
    """Operations in the order in which they were made; none if there is no record."""
    found, rest = [], record.read_bytes() if record.exists() else b""
    while rest:
        line, _, rest = rest.partition(b"\n")
        number, kind, result, inode, path, second, offset, size = os.fsdecode(line).split("\t")
        content, rest = rest[: int(size)], rest[int(size) :]
        fields = int(number), kind, int(result), int(inode), path, second, int(offset), content
        found.append(Operation(*fields))
    return found


def steady(name: str) -> str:
    """A name of a job's file without what differs from process to process."""
    return _OWN.sub("partial", name)


def can_interpose() -> bool:
    """Whether this system has what ``interpose.c`` needs: Linux and a C compiler."""
    return sys.platform == "linux" and shutil.which("cc") is not None


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Interposer:
    """The library, what it is asked to do, and what it has recorded.

    Args:
        folder: for its files, not one in which operations count.

    Attributes:
        environment: variables of a process that is to load it.
    """

    def __init__(self, folder: Path) -> None:
        self._control, self._record = folder / "control", folder / "record"
        library, source = folder / "interpose.so", Path(__file__).with_name("interpose.c")
        options = ("-shared", "-fPIC", "-O2", "-ldl", "-lpthread")
        subprocess.run(["cc", "-o", str(library), str(source), *options], check=True)
        self._control.write_text("\n")
        self.environment = {"LD_PRELOAD": str(library), "PSSSR_OPERATIONS": str(self._control)}

    def ask(self, folder: Path, disturbance: Disturbance) -> None:
        """Have the next process or fork counted in ``folder``, and disturbed."""
        self._record.unlink(missing_ok=True)
        later = f",{','.join(disturbance.later)}," if disturbance.later else ""
        asked = disturbance.number, disturbance.how, disturbance.error, later
        lines = map(str, (folder.resolve(), self._record, *asked))
        self._control.write_text("\n".join(lines) + "\n")

    def operations(self) -> list[Operation]:
        """What was recorded; an operation before or in which the process died is not."""
        return read_operations(self._record)


class DisturbedForks(Forks):
    """Runs of ``psssr upscale`` whose file operations are recorded and can be disturbed.

    A context manager.

    Args:
        folder: for the library and for records.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._interposer = Interposer(folder)

    def __enter__(self) -> Self:
        with _environment(**self._interposer.environment):
            return super().__enter__()

    def run(
        self, *arguments: object, folder: Path, disturbance: Disturbance = NONE
    ) -> tuple[Done, list[Operation]]:
        """Run ``psssr upscale ARGUMENTS`` in ``folder``, the only one where operations count.

        Returns:
            How the run ended, and its operations.
        """
        self._interposer.ask(folder, disturbance)
        done = self(*arguments, folder=folder)
        return done, self._interposer.operations()
