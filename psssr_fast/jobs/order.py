"""What a job is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psssr_fast.jobs.input import Seen
from psssr_fast.jobs.plan import Plan
from psssr_fast.video import Reader


@dataclass(frozen=True)
class Order:
    """What is to be made, and how.

    Attributes:
        output: the file or folder, as the user wrote it.
        reader: of the input.
        plan: everything that decides the bytes; the encoder's threads may be 0 for "choose".
        overwrite: an output that is there may be replaced.
        resume: go on where an interrupted run stopped; otherwise drop what it has kept.
        notes: warnings so far about frames, one line each.
        seen: what the input was before it was first read; ``None`` has it looked at later.
    """

    output: str | Path
    reader: Reader
    plan: Plan
    overwrite: bool = False
    resume: bool = True
    notes: Callable[[], tuple[str, ...]] = tuple
    seen: Seen | None = None
