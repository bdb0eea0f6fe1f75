"""What a run asks of a GPU, counted without one: launches, bytes and operations, by stage.

The program is the real one, on the meta device: shapes are real, numbers are missing. Counted is
what PyTorch is asked for, operator by operator: one that makes or changes numbers is one launch,
its bytes are those of its operands and results, each once. Libraries may launch more than one
kernel for an operator and copy operands besides; what is counted of plain networks is therefore
the least they do. Each of our own operators is one launch (``tests/test_cubins.py``).
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from psssr_fast.runtime.graphs import GraphCache
from psssr_fast.runtime.memory import (
    OUTSIDE,
    InsteadOfAttention,
    look_up,
    makes_new_tensors,
)
from psssr_fast.runtime.ranges import listening

Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, ...])
_OURS = "psssr_fast"
_SILENT = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "lift_fresh")
_ONLY_WRITES = ("copy_", "fill_", "zero_", "normal_", "uniform_")
_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Count:
    """Of a stage, or of a whole run.

    Attributes:
        launches: of kernels, one by one.
        replays: of captured graphs; what is launched in them is not in ``launches``.
        bytes: read and written.
        flops: of convolutions, matrix products and attention.
    """

    launches: int = 0
    replays: int = 0
    bytes: int = 0
    flops: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


@dataclass
class Tally:
    """What was counted; see :func:`tally`.

    Attributes:
        stages: by stage of a window; ``"outside"`` is what happens between them.
        operators: launches by the operator's name.
        calls: every distinct call of one of our own operators: shapes, strides, dtypes, numbers.
    """

    stages: dict[str, Count] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    calls: set[Hashable] = field(default_factory=set)
    _stage: str = OUTSIDE
    _in_graph: bool = False

    @property
    def total(self) -> Count:
        """Of all stages."""
        return sum(self.stages.values(), Count())

    def add(self, name: str, bytes: int, flops: int) -> None:
        """Count one operator."""
        launches = 0 if self._in_graph else 1
        self._add(Count(launches, 0, bytes, flops))
        self.operators[name] = self.operators.get(name, 0) + 1

    def _add(self, count: Count) -> None:
        self.stages[self._stage] = self.stages.get(self._stage, Count()) + count

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A listener of :mod:`psssr_fast.runtime.ranges`."""
        before, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = before

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, one graph is replayed."""
        self._add(Count(replays=1))
        self._in_graph = True
        try:
            yield
        finally:
            self._in_graph = False


class CountedGraphs(GraphCache):
    """A cache of graphs that captures nothing: it notes what would be captured and replayed.

    Attributes:
        keys: of the graphs that were captured.
    """

    def __init__(self, counted: Tally) -> None:
        super().__init__()
        self.keys: set[Hashable] = set()
        self._counted = counted

    def run(self, name: Hashable, function: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
        """``function(*inputs)``, counted as copies in, one replay and copies out."""
        self.keys.add((name, tuple((x.shape, x.stride(), x.dtype) for x in inputs)))
        static = tuple(x.clone() for x in inputs)
        with self._counted.replay():
            outputs = function(*static)
        if isinstance(outputs, Tensor):
            return outputs.clone()
        return tuple(x.clone() for x in outputs)


@contextmanager
def tally(counted: Tally | None = None) -> Iterator[Tally]:
    """Count what runs inside, which works on meta tensors."""
    counted = counted or Tally()
    operators = _Operators(counted)
    with torch.no_grad(), listening(counted.stage), _Attention(counted), operators:
        yield counted


class _Attention(InsteadOfAttention):
    """Attention as one operator, as fused kernels do it: scores are never stored."""

    def __init__(self, counted: Tally) -> None:
        super().__init__()
        self._counted = counted

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, dim = query.shape
        shape = batch, tokens, heads, value.shape[-1]
        out = torch.empty(shape, dtype=query.dtype, device=query.device).transpose(1, 2)
        flops = 2 * batch * heads * tokens * key.shape[2] * (dim + value.shape[-1])
        self._counted.add(_ATTENTION, sum(map(stored_bytes, (query, key, value, out))), flops)
        return out


class _Operators(TorchDispatchMode):
    """Counts every operator that launches something."""

    def __init__(self, counted: Tally) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counted = counted

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if makes_new_tensors(func):
            result, _ = look_up(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if any(x.is_meta for x in tensors) and _launches(func):
            ours = func.namespace == _OURS
            own = _OWN.get(func._opname) if ours else None
            bytes, flops = own(*args) if own else _generic(func, args, kwargs, result)
            self._counted.add(func._schema.name, bytes, flops)
            if ours:
                self._counted.calls.add((func._schema.name, _signature((args, kwargs))))
        return result


@cache
def _launches(func: OpOverload) -> bool:
    return not func.is_view and func._opname not in _SILENT


def stored_bytes(x: Tensor) -> int:
    """Of the distinct elements of a tensor: an expanded axis is stored once."""
    count = prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return count * x.element_size()


def _generic(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[int, int]:
    """Bytes and operations of any operator: operands and results once each."""
    results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if func._opname == "index_select":
        given = results  # what is not selected is not read
    elif func._opname in _ONLY_WRITES:
        given = given[1:]
    count = flop_registry.get(func.overloadpacket)
    flops = count(*args, **kwargs, out_val=result) if count else 0
    return sum(map(stored_bytes, [*given, *results])), flops


def _causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    first: int = 0,
    frames: int = -1,
    past: int = 0,
) -> tuple[int, int]:
    """Taps before the clip are skipped; those beside the picture count, though they are too."""
    frames, taps = x.shape[2] if frames == -1 else frames, weight.shape[2]
    frame = x[:, :, 0].numel()
    out = len(x) * len(weight) * frames * prod(x.shape[3:])
    read = frame * (frames + min(past, taps - 1)) + weight.numel() + bias.numel()
    added = 0 if residual is None else out
    products = sum(min(taps, past + t + 1) for t in range(frames)) * frame
    flops = 2 * products * len(weight) * prod(weight.shape[3:])
    return (read + added + out) * x.element_size(), flops


def _upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, phases: Tensor | None = None
) -> tuple[int, int]:
    """Four phases of 2x2 taps."""
    weights = 16 * weight[0, 0, 0, 0].numel() * len(weight) * weight.shape[1]
    out = 4 * x[:, 0].numel() * len(weight)
    moved = x.numel() + weights + bias.numel() + out
    return moved * x.element_size(), 2 * weights * x[:, 0].numel()


def _rms_norm_silu_into(
    x: Tensor, gamma: Tensor, ring: Tensor, first: int, silu: bool
) -> tuple[int, int]:
    """Of the ring only the chunk's own slots are written."""
    return 2 * stored_bytes(x) + stored_bytes(gamma), 0


def _feature_project(x: Tensor, weight: Tensor, cached: Tensor) -> tuple[int, int]:
    out = x.numel() // x.shape[-1] * len(weight)
    moved = sum(map(stored_bytes, (x, weight, cached))) + out * x.element_size()
    return moved, 2 * out * x.shape[-1]


def _mid_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int]:
    return sum(map(stored_bytes, (q, k, v, q))), 4 * q.numel() * k.shape[1]


def _window_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: Any, window: Any, shift: Any, reach: Any
) -> tuple[int, int]:
    pairs = 1  # of a query and a key that it sees
    for size, length, move, far in zip(grid, window, shift, reach, strict=True):
        begins = range(-move, size, length)
        queries = [min(size, begin + length) - max(0, begin) for begin in begins]
        keys = [
            min(size, begin + (far + 1) * length) - max(0, begin - far * length) for begin in begins
        ]
        pairs *= sum(map(int.__mul__, queries, keys))
    flops = 4 * pairs * q.shape[0] * q.shape[2] * q.shape[3]
    return sum(map(stored_bytes, (q, k, v, q))), flops


_OWN: dict[str, Callable[..., tuple[int, int]]] = {
    "causal_conv3d": _causal_conv3d,
    "upsample_conv2d": _upsample_conv2d,
    "rms_norm_silu_into": _rms_norm_silu_into,
    "feature_project": _feature_project,
    "mid_attention": _mid_attention,
    "window_attention": _window_attention,
}


def _signature(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    if isinstance(value, dict):
        return tuple((key, _signature(item)) for key, item in value.items())
    return cast(Hashable, value)
