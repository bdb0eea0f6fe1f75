"""Faults on purpose: fail the n-th time a named point is passed, as SQLite's tests do.

``PSSSR_FAULT=POINT:N:ACTION`` (several, separated by commas) in the environment makes the N-th pass
of POINT fail; ``N+`` fails the N-th and all later ones. POINT may be ``*``, any point. ACTION is

- ``kill``: SIGKILL to this process, as a power cut; ``int`` and ``term``: that signal to it;
- ``enospc``: the disk is full (``OSError``); ``eio``: it is broken;
- ``oom``: ``torch.OutOfMemoryError``.

Without the variable a point costs one look at a global.
"""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from psssr_fast.errors import UsageError

VARIABLE = "PSSSR_FAULT"
ANY = "*"


def _signal(number: int) -> None:
    os.kill(os.getpid(), number)


def _os_error(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _out_of_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("out of memory, on purpose")


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: _signal(signal.SIGKILL),
    "int": lambda: _signal(signal.SIGINT),
    "term": lambda: _signal(signal.SIGTERM),
    "enospc": lambda: _os_error(errno.ENOSPC),
    "eio": lambda: _os_error(errno.EIO),
    "oom": _out_of_memory,
}


@dataclass
class Fault:
    """One fault to come.

    Attributes:
        point: its name, or ``*``.
        number: which pass fails, from 1.
        onwards: all later passes fail too.
        action: what happens then.
        passes: how often the point was passed.
    """

    point: str
    number: int
    onwards: bool
    action: str
    passes: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def meets(self, point: str) -> bool:
        """Pass a point; whether it fails."""
        if self.point not in (point, ANY):
            return False
        with self._lock:
            self.passes += 1
            return self.passes == self.number or (self.onwards and self.passes > self.number)


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The faults that a value of ``PSSSR_FAULT`` asks for.

    Raises:
        UsageError: it is not of the form ``POINT:N:ACTION[,...]``.
    """
    found = []
    for item in filter(None, text.split(",")):
        point, _, rest = item.partition(":")
        number, _, action = rest.partition(":")
        digits = number.removesuffix("+")
        if not (point and digits.isascii() and digits.isdigit() and int(digits)) or (
            action not in _ACTIONS
        ):
            raise UsageError(
                f"{VARIABLE} must be POINT:N:ACTION with N from 1 and an action of "
                f"{', '.join(_ACTIONS)}; got {item!r}"
            )
        found.append(Fault(point, int(digits), number.endswith("+"), action))
    return tuple(found)


_faults: tuple[Fault, ...] | None = None  # None: the environment was not looked at yet


def fault(point: str) -> None:
    """Pass a named point, where a fault may have been asked for."""
    global _faults
    if _faults is None:
        _faults = parse_faults(os.environ.get(VARIABLE, ""))
    due = [each.action for each in _faults if each.meets(point)]  # all count, then one fails
    for action in due:
        _ACTIONS[action]()


@contextmanager
def injected(text: str) -> Iterator[tuple[Fault, ...]]:
    """For as long as this lasts, the faults of ``text`` instead of the environment's."""
    global _faults
    before, _faults = _faults, parse_faults(text)
    try:
        yield _faults
    finally:
        _faults = before
