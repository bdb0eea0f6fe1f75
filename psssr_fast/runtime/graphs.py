"""Capture a function of tensors in a CUDA graph, once for every shape, and replay it.

A window of the full model is thousands of kernels; launching them one by one keeps a CPU busy and
a small GPU workload waiting. A replay is one launch.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import RLock
from typing import TypeVar, cast

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, ...])
WARMUPS = 2  # runs before the capture: kernels compile, libraries choose, tables are made


@dataclass
class _Captured:
    """A graph, and the memory it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: Tensor | tuple[Tensor, ...]


class GraphCache:
    """Captured functions, the least recently used ones dropped.

    Safe for several threads: one replay at a time, and what a call returns is a copy, which the
    next replay leaves alone. Functions must be pure, and launch the same kernels whatever the
    values of their inputs are.

    Args:
        limit: graphs kept; each holds on to the memory of its function's intermediate results.
    """

    def __init__(self, limit: int = 8) -> None:
        self.limit = limit
        self._entries: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def run(self, name: Hashable, function: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
        """``function(*inputs)``, replayed where that can be done.

        Args:
            name: of the function: equal names mean equal functions.
            function: takes ``inputs``, returns a tensor or a tuple of tensors.
            inputs: tensors; those on a CPU have the function run as it is.
        """
        if not all(x.is_cuda for x in inputs):
            return function(*inputs)
        key = (name, tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in inputs))
        with self._lock, torch.cuda.device(inputs[0].device):
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _capture(function, inputs)
                logger.info("captured %s for %s", name, [tuple(x.shape) for x in inputs])
                while len(self._entries) > self.limit:
                    self._entries.popitem(last=False)
            self._entries.move_to_end(key)
            for static, given in zip(entry.inputs, inputs, strict=True):
                static.copy_(given)
            entry.graph.replay()
            return _copied(cast(Outputs, entry.outputs))

    def clear(self) -> None:
        """Drop every graph and give its memory back."""
        with self._lock:
            self._entries.clear()


def _capture(function: Callable[..., Outputs], inputs: tuple[Tensor, ...]) -> _Captured:
    static = tuple(x.clone(memory_format=torch.preserve_format) for x in inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            function(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function(*static)
    return _Captured(graph, static, outputs)


def _copied(outputs: Outputs) -> Outputs:
    if isinstance(outputs, Tensor):
        return outputs.clone()
    return tuple(x.clone() for x in outputs)
