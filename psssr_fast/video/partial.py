"""What a file is called until it is complete."""

import os
from pathlib import Path

_LONGEST = 60  # bytes of the name that are kept: the whole must stay below 255


def partial_path(path: Path, suffix: str) -> Path:
    """``.NAME.partial-PID`` and ``suffix`` beside ``path``; a long name is cut, by bytes."""
    name = os.fsdecode(os.fsencode(path.stem)[:_LONGEST])
    return path.with_name(f".{name}.partial-{os.getpid()}{suffix}")
