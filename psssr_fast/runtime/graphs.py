"""Capture a function of tensors in a CUDA graph, once for every shape, and replay it.

A window of the full model is thousands of kernels; launching them one by one keeps a CPU busy and
a small GPU workload waiting. A replay is one launch.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from threading import Lock, RLock
from typing import TypeVar, cast

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, ...])
WARMUPS = 2  # runs before the capture: kernels compile, libraries choose, tables are made
_CAPTURING = Lock()  # of the process: one capture synchronises, which would break another


@dataclass
class _Captured:
    """A graph, and the memory it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: Tensor | tuple[Tensor, ...]
    done: torch.cuda.Event = field(default_factory=torch.cuda.Event)  # of the last replay


class GraphCache:
    """Captured functions, the least recently used ones dropped.

    Safe for several threads and streams: replays of a graph wait for each other, and what a call
    returns is a copy, which the next replay leaves alone. Functions must be pure, and launch the
    same kernels whatever the values of their inputs are. While a shape is captured, no other
    thread of the process may synchronise the device.

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
        inputs = tuple(_dense(x) for x in inputs)
        key = (name, tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in inputs))
        with self._lock, torch.cuda.device(inputs[0].device):
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = self._capture(function, inputs)
                logger.info("captured %s for %s", name, [tuple(x.shape) for x in inputs])
            self._entries.move_to_end(key)
            stream = torch.cuda.current_stream()
            stream.wait_event(entry.done)
            for static, given in zip(entry.inputs, inputs, strict=True):
                static.copy_(given)
            entry.graph.replay()
            outputs = _copied(cast(Outputs, entry.outputs))
            entry.done.record(stream)
            return outputs

    def _capture(self, function: Callable[..., Outputs], inputs: tuple[Tensor, ...]) -> _Captured:
        """Capture, with room made first; if memory runs out, again with all other graphs gone."""
        while len(self._entries) >= self.limit:
            self._entries.popitem(last=False)[1].done.synchronize()
        try:
            return _capture(function, inputs)
        except torch.OutOfMemoryError:
            if not self._entries:
                raise
        # Outside the handler, whose traceback holds the tensors of the failed run.
        torch.cuda.synchronize()
        self._entries.clear()
        torch.cuda.empty_cache()
        return _capture(function, inputs)

    def clear(self) -> None:
        """Drop every graph and give its memory back."""
        with self._lock:
            self._entries.clear()


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Where a device's graphs are warmed up and captured: libraries keep memory for each stream."""
    return torch.cuda.Stream(device)


def _capture(function: Callable[..., Outputs], inputs: tuple[Tensor, ...]) -> _Captured:
    with _CAPTURING:
        static = tuple(x.clone(memory_format=torch.preserve_format) for x in inputs)
        stream = _side_stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                function(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = function(*static)
        return _Captured(graph, static, outputs)


def _dense(x: Tensor) -> Tensor:
    """Without the gaps of a view, so that a tile's key does not depend on its picture's size."""
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return x
    return x.contiguous()


def _copied(outputs: Outputs) -> Outputs:
    if isinstance(outputs, Tensor):
        return outputs.clone()
    return tuple(x.clone() for x in outputs)
