"""The end of a job: the note of what was made, and removing everything else."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psssr_fast.faults import fault
from psssr_fast.jobs.files import DONE, LOCK, PLAN, remove, sync_folder, write_whole
from psssr_fast.jobs.journal import canonical
from psssr_fast.jobs.plan import Plan, digest_of


@dataclass(frozen=True)
class Finished:
    """A job whose output is complete, under its temporary name or its own.

    Attributes:
        plan: of the job, as JSON values.
        frames: of the output.
        warnings: what a user should know, one line each.
        file: which file it is: number in the file system, bytes, time of change in ns; empty for
            a folder of frames.
    """

    plan: dict[str, Any]
    frames: int
    warnings: tuple[str, ...]
    file: tuple[int, ...]

    @classmethod
    def of(
        cls, plan: Plan, frames: int, warnings: tuple[str, ...], file: Path | None
    ) -> "Finished":
        """The note on a file that is complete."""
        return cls(plan.to_json(), frames, warnings, () if file is None else _identity(file))

    def made(self, output: Path) -> bool:
        """Whether this output, under its own name, is the one."""
        if not self.file:
            found = list(output.iterdir()) if output.is_dir() else []
            return sum(file.suffix.lower() == ".png" for file in found) >= self.frames
        return output.is_file() and _identity(output) == self.file

    def save(self, folder: Path) -> None:
        """Write the note into the folder of the job."""
        content = asdict(self)
        write_whole(folder / DONE, canonical({"sha256": digest_of(content), "done": content}))


def load_finished(folder: Path) -> Finished | None:
    """The note in the folder of a job, if there is one as it was written."""
    try:
        content = json.loads((folder / DONE).read_bytes())
        done = content["done"]
        if content["sha256"] != digest_of(done):
            return None
        return Finished(done["plan"], done["frames"], tuple(done["warnings"]), tuple(done["file"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_unfinished(folder: Path) -> bool:
    """Whether a job was begun there, and its folder not cleared yet."""
    return any((folder / name).exists() for name in (PLAN, DONE))


def sweep(folder: Path, *kept: str) -> None:
    """Remove all files of a job but the lock and those named: what no step accounts for."""
    for path in folder.iterdir():
        if path.name not in (LOCK, *kept):
            remove(path)


def clear(folder: Path, keep_lock: bool) -> None:
    """Remove the folder of a job, the note of what was made last.

    Args:
        folder: of the job.
        keep_lock: leave the lock, and with it the folder, to whoever holds it.
    """
    for path in sorted(folder.iterdir()):
        if path.name not in (DONE, LOCK):
            fault("clearing")
            remove(path)
    (folder / DONE).unlink(missing_ok=True)
    fault("cleared")
    if not keep_lock:
        (folder / LOCK).unlink(missing_ok=True)
        try:
            os.rmdir(folder)
        except OSError:  # another process has come, and waits at the lock
            return
        sync_folder(folder.parent)


def _identity(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
