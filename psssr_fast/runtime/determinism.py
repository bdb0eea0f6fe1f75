"""The same bits every time: kernels that may differ from run to run are switched off.

On a CPU they do not differ as it is: what is decided by measuring, the dtype, is decided by rule
instead. On CUDA, sums in varying order and libraries that choose by timing are ruled out; another
GPU model, driver, or version of torch may still round differently.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
import torch.utils.deterministic

_FILLS: Any = torch.utils.deterministic  # a module with a property, which type checkers miss
_lock = Lock()
_users = 0
_before: "_Switches | None" = None


@dataclass(frozen=True)
class _Switches:
    """Torch's, all of them of the process."""

    algorithms: bool
    only_warn: bool
    fill: bool
    benchmark: bool

    @classmethod
    def now(cls) -> "_Switches":
        return cls(
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            _FILLS.fill_uninitialized_memory,
            torch.backends.cudnn.benchmark,
        )

    def set(self) -> None:
        torch.use_deterministic_algorithms(self.algorithms, warn_only=self.only_warn)
        _FILLS.fill_uninitialized_memory = self.fill
        torch.backends.cudnn.benchmark = self.benchmark


def prepare_determinism() -> None:
    """What must be said before CUDA starts: cuBLAS takes its workspace from the environment."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Compute the same bits every time, with so many threads, for as long as this lasts.

    The switches belong to the process: the first thread that comes sets them, and the last one
    puts them back. The number of threads belongs to the thread that calls.
    """
    global _users, _before
    threads_before = torch.get_num_threads()
    with _lock:
        if _users == 0:
            _before = _Switches.now()
            # Memory that is read before it is written would be a mistake of ours: not filled.
            _Switches(True, False, False, False).set()
        _users += 1
    try:
        _use_threads(threads)
        yield
    finally:
        _use_threads(threads_before)
        with _lock:
            _users -= 1
            if _users == 0 and _before is not None:
                _before.set()
                _before = None


def _use_threads(number: int) -> None:
    if torch.get_num_threads() != number:
        torch.set_num_threads(number)
