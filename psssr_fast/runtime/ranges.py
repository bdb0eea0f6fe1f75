"""Named ranges: which stage of a window runs now, for whoever wants to know.

The pipeline wraps its stages in :func:`stage`. Nothing happens there, not even a synchronisation,
unless someone listens (:func:`listening`) or torch's profiler is on.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

from psssr_fast.faults import fault

STAGES = ("encode", "base", "draft", "decode", "update")
"""In the order in which a window goes through them; ``decode`` comes more than once."""

FOR_FRAMES, FOR_OUTPUT = WAITS = ("wait for frames", "wait for output")
"""What the thread that computes waits for from file to file: a frame that was decoded; room among
those to be encoded and, at the end, the last of them."""

Listener = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a stage or wait; what it returns is entered and left with it."""

_SILENCE: AbstractContextManager[None] = nullcontext()
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def stage(name: str) -> AbstractContextManager[None]:
    """The context of a stage: ``with stage("encode"): ...``; also a point of faults."""
    fault(name)
    return waiting(name)


def waiting(name: str) -> AbstractContextManager[None]:
    """The context of a wait: a stage that is no point of faults."""
    listener = _listener.get()
    if listener is not None:
        return listener(name)
    return profiler_range(name) if torch._C._autograd._profiler_enabled() else _SILENCE


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` at every stage and wait that this thread (or task) enters."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def profiler_range(name: str) -> Iterator[None]:
    """A listener: a range in torch's profiler and, on a CUDA machine, in NVTX."""
    with torch.profiler.record_function(f"psssr.{name}"):
        if not torch.cuda.is_initialized():
            yield
            return
        torch.cuda.nvtx.range_push(f"psssr.{name}")
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
