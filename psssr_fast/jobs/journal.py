"""The journal of a job: one line for each chunk that is kept, and one when all frames are there."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, get_type_hints

from psssr_fast.errors import OutputError
from psssr_fast.faults import fault
from psssr_fast.files import is_plain_name
from psssr_fast.jobs.files import JOURNAL, write_all
from psssr_fast.jobs.folder import JobFolder

_MAX_LINE = 2**24  # bytes; a line has some hundred, and a few for every frame
_MAX_NUMBER = 2**60  # ticks; sums and differences of a few still fit 64 bits
_SHA256 = re.compile("[0-9a-f]{64}")


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


def name_of(index: int) -> str:
    """Return the name of a numbered chunk's file."""
    return f"chunk-{index:06}"


def canonical(content: Any) -> bytes:
    """JSON values as bytes that are the same whenever the values are."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def parse_entry(content: Any) -> Chunk | Ending:
    """Make an entry of the JSON values of a line, without its check.

    Raises:
        ValueError: the values are not of the types, or not in the ranges, of an entry.
    """
    if not isinstance(content, dict) or len(content) != 1:
        raise ValueError("not an entry")
    (name, values), *_ = content.items()
    if name not in _ENTRIES or not isinstance(values, dict):
        raise ValueError("not an entry")
    return _typed(_ENTRIES[name], values)


_ENTRIES: dict[str, type[Chunk | Ending]] = {"chunk": Chunk, "end": Ending}


def _typed(kind: type[Chunk | Ending], values: dict[str, Any]) -> Chunk | Ending:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    if set(names) != set(values):
        raise ValueError("other fields than those of an entry")
    return kind(**{name: _checked(hints[name], values[name]) for name in names})


def _checked(hint: Any, value: Any) -> Any:
    if hint in (int, str):
        if type(value) is not hint or (hint is int and abs(value) > _MAX_NUMBER):
            raise ValueError("a value of another type")
        return value
    if not isinstance(value, list):
        raise ValueError("a value of another type")
    inner = hint.__args__[0]  # of tuple[int, ...] or tuple[str, ...]
    return tuple(_checked(inner, item) for item in value)


class Journal:
    """Append-only; every line is on the disk before :meth:`append` returns.

    A line carries the hash of itself and the line before, and the first that of the plan, so that
    a line that was torn, changed, moved or made by another job is known. The journal ends where
    the first such line begins, or one whose values cannot be true.

    Args:
        folder: of the job; the file is made if it is not there.
        plan: digest of the plan.
        images: chunks are PNG files with names of their own, not numbered files of the job.

    Raises:
        OutputError: the file is not one of the job.
    """

    def __init__(self, folder: JobFolder, plan: str, images: bool = False) -> None:
        self.chunks: list[Chunk] = []
        self.ending: Ending | None = None
        self._folder, self._images = folder, images
        self._check = plan
        self._frames = 0
        self._sizes: list[tuple[int, str]] = [(0, plan)]  # of the file, and check, after each line
        if not folder.has(JOURNAL):
            os.close(folder.create(JOURNAL))
            folder.sync()
        with os.fdopen(folder.open_own(JOURNAL), "rb") as file:
            while (line := file.readline(_MAX_LINE)) and self._take(line):
                pass
            self.damaged = self._sizes[-1][0] < os.fstat(file.fileno()).st_size
        self.cut(len(self.chunks) if self.ending is None else None)

    @property
    def frames(self) -> int:
        """How many frames are kept."""
        return self._frames

    def cut(self, chunks: int | None) -> None:
        """Forget what comes after the first so many chunks; ``None`` forgets no valid line."""
        if chunks is not None:
            del self.chunks[chunks:]
            del self._sizes[chunks + 1 :]
            self.ending = None
            self._frames = sum(chunk.frames for chunk in self.chunks)
        size, self._check = self._sizes[-1]
        with os.fdopen(self._folder.open_own(JOURNAL, writing=True), "r+b") as file:
            if os.fstat(file.fileno()).st_size > size:
                file.truncate(size)
                os.fsync(file.fileno())

    def append(self, entry: Chunk | Ending) -> None:
        """Add a line.

        Raises:
            OSError: it cannot be written; then the journal is as before, or ends in a torn line.
            OutputError: the file is not as this process left it.
        """
        content = {"chunk" if isinstance(entry, Chunk) else "end": asdict(entry)}
        check = self._next_check(content)
        line = canonical({"check": check, **content}) + b"\n"
        descriptor = self._folder.open_own(JOURNAL, writing=True)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) != self._sizes[-1][0]:
                raise OutputError(
                    f"{self._folder.path / JOURNAL}: changed by another process. Run the same "
                    "command again; it goes on from what is kept."
                )
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
            if canonical({"check": check, **content}) + b"\n" != line:
                return False
            entry = parse_entry(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        if not self._follows(entry):
            return False
        self._add(entry, self._sizes[-1][0] + len(line), check)
        return True

    def _follows(self, entry: Chunk | Ending) -> bool:
        """Whether an entry can come next: its values are possible, and fit those before it."""
        if self.ending is not None:
            return False
        if isinstance(entry, Ending):
            return 0 < entry.frames == self._frames
        begin, last = self._frames, self.chunks[-1] if self.chunks else None
        named = entry.file == name_of(entry.index)
        if self._images:
            named = is_plain_name(entry.file) and entry.file.lower().endswith(".png")
        times = (*(() if last is None else (last.pts[-1],)), *entry.pts)
        cuts = (begin - 1, *entry.cuts, begin + entry.frames)
        return (
            named
            and entry.index == len(self.chunks)
            and _SHA256.fullmatch(entry.sha256) is not None
            and entry.bytes > 0
            and 0 < entry.frames == len(entry.pts)
            and all(a < b for a, b in pairwise(times))
            and entry.end > entry.pts[-1]
            and 0 <= entry.delay < entry.frames
            and all(a < b for a, b in pairwise(cuts))
        )

    def _next_check(self, content: Any) -> str:
        return hashlib.sha256(self._check.encode() + canonical(content)).hexdigest()

    def _add(self, entry: Chunk | Ending, size: int, check: str) -> None:
        if isinstance(entry, Chunk):
            self.chunks.append(entry)
            self._frames += entry.frames
        else:
            self.ending = entry
        self._sizes.append((size, check))
        self._check = check
