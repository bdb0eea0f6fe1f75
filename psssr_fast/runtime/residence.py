"""Networks that take turns on a device: all but the one that works wait on the CPU.

While they do, nobody else may run them: other windows share a lock, that one holds it alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

import torch
from torch import nn


class SharedLock:
    """Held by many at once, or by one alone."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._shared = 0
        self._waiting = 0
        self._exclusive = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it with others; wait while someone has it, or waits to have it, alone."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._exclusive or self._waiting))
            self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold it alone."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._exclusive or self._shared))
            finally:
                self._waiting -= 1
            self._exclusive = True
        try:
            yield
        finally:
            with self._changed:
                self._exclusive = False
                self._changed.notify_all()


class Room:
    """A device on which one of several modules is at a time, for as long as this is entered.

    Args:
        device: where they work.
        modules: all of them. They leave when the room is entered, and are back when it is left.
    """

    def __init__(self, device: torch.device, modules: Sequence[nn.Module]) -> None:
        self._device, self._modules = device, modules
        self._inside: nn.Module | None = None

    def __enter__(self) -> "Room":
        try:
            for module in self._modules:
                module.to("cpu")
        except BaseException:
            self.__exit__()
            raise
        self._give_back()
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            module.to(self._device)

    def enter(self, module: nn.Module) -> None:
        """Bring a module to the device; whichever is there leaves."""
        if module is self._inside:
            return
        if self._inside is not None:
            self._inside.to("cpu")
            self._give_back()
        self._inside = module
        module.to(self._device)

    def _give_back(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
