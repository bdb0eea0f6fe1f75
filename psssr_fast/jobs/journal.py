"""The journal of a job: one line for each chunk that is kept, and one when all frames are there."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psssr_fast.faults import fault
from psssr_fast.jobs.files import sync_folder, write_all


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive frames that is safe on the disk.

    Attributes:
        index: of the chunk, from 0.
        file: its name.
        sha256: of the file.
        bytes: its size.
        frames: how many.
        pts: when each is shown, in ticks of the input.
        end: when the last stops being shown, ticks.
        delay: by how many frames an encoded frame may come later than it is shown.
        cuts: indices, in the whole video, of those that begin a new scene.
        warnings: what a user should know, one line each.
        run: which process wrote it; its later warnings repeat the earlier ones.
    """

    index: int
    file: str
    sha256: str
    bytes: int
    frames: int
    pts: tuple[int, ...]
    end: int
    delay: int = 0
    cuts: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    run: str = ""


@dataclass(frozen=True)
class Ending:
    """The input has no more frames.

    Attributes:
        frames: how many there were.
        warnings: of the reader.
    """

    frames: int
    warnings: tuple[str, ...]


def canonical(content: Any) -> bytes:
    """JSON values as bytes that are the same whenever the values are."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


class Journal:
    """Append-only; every line is on the disk before :meth:`append` returns.

    A line carries the hash of itself and the line before, and the first that of the plan, so that
    a line that was torn, changed, moved or made by another job is known. The journal ends where
    the first such line begins.

    Args:
        path: of the file, which is made if it is not there.
        plan: digest of the plan.
    """

    def __init__(self, path: Path, plan: str) -> None:
        self.chunks: list[Chunk] = []
        self.ending: Ending | None = None
        self._path = path
        self._check = plan
        self._sizes: list[tuple[int, str]] = [(0, plan)]  # of the file, and check, after each line
        if not path.exists():
            path.touch()
            sync_folder(path.parent)
        content = path.read_bytes()
        for line in content.splitlines(keepends=True):
            if not self._take(line):
                break
        self.damaged = self._sizes[-1][0] < len(content)
        self.cut(len(self.chunks) if self.ending is None else None)

    @property
    def frames(self) -> int:
        """How many frames are kept."""
        return sum(chunk.frames for chunk in self.chunks)

    def cut(self, chunks: int | None) -> None:
        """Forget what comes after the first so many chunks; ``None`` forgets no valid line."""
        if chunks is not None:
            del self.chunks[chunks:]
            del self._sizes[chunks + 1 :]
            self.ending = None
        size, self._check = self._sizes[-1]
        if self._path.stat().st_size > size:
            with self._path.open("r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())

    def append(self, entry: Chunk | Ending) -> None:
        """Add a line.

        Raises:
            OSError: it cannot be written; then the journal is as before, or ends in a torn line.
        """
        content = {"chunk" if isinstance(entry, Chunk) else "end": asdict(entry)}
        check = self._next_check(content)
        line = canonical({"check": check, **content}) + b"\n"
        with self._path.open("ab", buffering=0) as file:
            half = len(line) // 2
            write_all(file, line[:half])
            fault("journal-half")
            write_all(file, line[half:])
            fault("journal-written")
            os.fsync(file.fileno())
        self._add(entry, self._sizes[-1][0] + len(line), check)

    def _take(self, line: bytes) -> bool:
        """Whether the next line is as it was written; then it counts."""
        try:
            content = json.loads(line)
            check = content.pop("check")
            if check != self._next_check(content):
                return False
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        if canonical({"check": check, **content}) + b"\n" != line or self.ending is not None:
            return False
        size = self._sizes[-1][0] + len(line)
        if "end" in content:
            ending = content["end"]
            self._add(Ending(ending["frames"], tuple(ending["warnings"])), size, check)
        else:
            fields = content["chunk"]
            for name in ("pts", "cuts", "warnings"):
                fields[name] = tuple(fields[name])
            self._add(Chunk(**fields), size, check)
        return True

    def _next_check(self, content: Any) -> str:
        return hashlib.sha256(self._check.encode() + canonical(content)).hexdigest()

    def _add(self, entry: Chunk | Ending, size: int, check: str) -> None:
        if isinstance(entry, Chunk):
            self.chunks.append(entry)
        else:
            self.ending = entry
        self._sizes.append((size, check))
        self._check = check
