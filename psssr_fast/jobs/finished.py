"""The note of what a finished job made, by which a run after a kill in the last steps knows it."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psssr_fast.files import Folder, is_plain_name
from psssr_fast.jobs.files import DONE, PLAN
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.journal import Chunk, canonical
from psssr_fast.jobs.plan import Plan, digest_of, is_plan

_MAX_NOTE = 2**29  # bytes; about a hundred for every PNG frame


@dataclass(frozen=True)
class MadeFile:
    """A file of a finished output.

    Attributes:
        name: of a PNG frame; empty for a video, which is found by the output's name.
        sha256: of its content, hexadecimal.
        bytes: its size.
        inode, mtime_ns: number in the file system and time of change, by which it is known without
            reading it; 0 if only the content counts.
    """

    name: str
    sha256: str
    bytes: int
    inode: int = 0
    mtime_ns: int = 0

    @classmethod
    def of_video(cls, descriptor: int) -> "MadeFile":
        """Describe a video that is complete, by its descriptor."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = os.fstat(descriptor)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls("", digest, found.st_size, found.st_ino, found.st_mtime_ns)

    @classmethod
    def of_frame(cls, chunk: Chunk) -> "MadeFile":
        """Describe a PNG frame as the journal has it."""
        return cls(chunk.file, chunk.sha256, chunk.bytes)

    def is_at(self, folder: Folder, name: str) -> bool:
        """Return whether the file of that name is this one."""
        try:
            descriptor = folder.open_regular(name)
        except (OSError, ValueError):  # NotRegular is an OSError
            return False
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if found.st_size != self.bytes:
                return False
            if self.inode and (found.st_ino, found.st_mtime_ns) == (self.inode, self.mtime_ns):
                return True
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


@dataclass(frozen=True)
class Finished:
    """A job whose output is complete, under its temporary name or its own.

    Attributes:
        plan: of the job, as JSON values.
        frames: of the output.
        warnings: what a user should know, one line each.
        files: what was made: one video, or the PNG frames.
    """

    plan: dict[str, Any]
    frames: int
    warnings: tuple[str, ...]
    files: tuple[MadeFile, ...]

    @classmethod
    def of(
        cls, plan: Plan, frames: int, warnings: tuple[str, ...], files: Sequence[MadeFile]
    ) -> "Finished":
        """The note on an output that is complete."""
        return cls(plan.to_json(), frames, warnings, tuple(files))

    def made(self, parent: Folder, name: str) -> bool:
        """Return whether an output, under its own name, is what the job made.

        Args:
            parent: the folder that the output is in.
            name: of the output.
        """
        if not self.files[0].name:
            return self.files[0].is_at(parent, name)
        try:
            with Folder(parent.path / name) as frames:
                return all(file.is_at(frames, file.name) for file in self.files)
        except OSError:
            return False

    def save(self, folder: JobFolder) -> None:
        """Write the note into the folder of the job."""
        content = json.loads(json.dumps(asdict(self)))
        folder.write_whole(DONE, canonical({"sha256": digest_of(content), "done": content}))


def load_finished(folder: JobFolder) -> Finished | None:
    """Read the note in the folder of a job; ``None`` if there is none as it was written.

    Raises:
        OutputError: the file is not one of the job.
    """
    stored = folder.read_own(DONE, _MAX_NOTE)
    if stored is None:
        return None
    try:
        content = json.loads(stored)
        done = content["done"]
        if content["sha256"] != digest_of(done):
            return None
        files = tuple(MadeFile(**file) for file in done["files"])
        finished = Finished(done["plan"], done["frames"], tuple(done["warnings"]), files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return finished if _is_possible(finished) else None


def _is_possible(finished: Finished) -> bool:
    """Whether values that came from a file are of the types of a note."""
    files = finished.files
    numbers = [finished.frames, *(n for f in files for n in (f.bytes, f.inode, f.mtime_ns))]
    texts = [*finished.warnings, *(t for f in files for t in (f.name, f.sha256))]
    return (
        is_plan(finished.plan)
        and bool(files)
        and all(type(number) is int and 0 <= number < 2**64 for number in numbers)
        and all(type(text) is str for text in texts)
        and (len(files) == 1 or all(is_plain_name(file.name) for file in files))
    )


def is_unfinished(folder: JobFolder) -> bool:
    """Return whether a job was begun there, and its folder not cleared yet."""
    return folder.has(PLAN) or folder.has(DONE)
