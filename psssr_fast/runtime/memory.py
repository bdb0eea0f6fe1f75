"""How much memory tensors take at the worst moment: of a run, or of a rehearsal without memory.

A rehearsal is the same program on the meta device: every shape and every lifetime is real, only
the numbers are missing. It takes no memory and, for the full-size model, about half a second, so
that what a window will need is not estimated from a formula but found out.
"""

import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import DispatchKey
from torch._library.custom_ops import _maybe_get_opdef
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psssr_fast.runtime.ranges import listening
from psssr_fast.runtime.scratch import carry_out

OUTSIDE = "outside"  # between the stages

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
_OURS = "psssr_fast"
_CONVOLUTION = torch.ops.aten.convolution.default
_WHOLE = (torch.ops.aten._upsample_nearest_exact2d,)  # only taken apart where there is no device
_REMEMBERED = 2**15  # calls


@dataclass(frozen=True)
class StagePeak:
    """Bytes of live tensors in a stage: when it began, and at its worst moment."""

    before: int
    peak: int


@dataclass(frozen=True)
class Peak:
    """The worst moment of a run.

    Attributes:
        bytes: of all tensors that were made in the run and live at that moment.
        scratch: what the libraries take more, for a moment, at what is then the worst one; see
            :mod:`psssr_fast.runtime.scratch`.
        stage: in which stage it comes.
        stages: the peak of each stage that ran; the worst time of those that ran often.
    """

    bytes: int
    scratch: int
    stage: str
    stages: dict[str, StagePeak]

    @property
    def total(self) -> int:
        """What must be there for the run to succeed."""
        return self.bytes + self.scratch

    @property
    def captured(self) -> int:
        """What must be there if each stage is a CUDA graph, which keeps its memory for good.

        Not measured: the sum of what stages make, the most that lives between them, and what the
        draft is given, which its graph has a copy of.
        """
        graphs = [self.stages[name] for name in self.stages if name != "update"]
        kept = sum(stage.peak - stage.before for stage in graphs)
        given = self.stages["draft"].before if "draft" in self.stages else 0
        return kept + given + max((stage.before for stage in self.stages.values()), default=0)


def rehearse(run: Callable[[], object], device: torch.device) -> Peak:
    """Find the peak of tensor memory of ``run``, which works on meta tensors.

    Attention counts as the fused kernels do it: the scores are never stored. What other operators
    take and give back inside themselves is not seen, but for convolutions it is estimated.

    Args:
        run: pure apart from its memory; its inputs were made before.
        device: what it is rehearsed for.
    """
    tracker = _Tracker(device)
    with torch.no_grad(), listening(tracker.stage), _FusedAttention(), tracker:
        run()
    return Peak(
        bytes=tracker.peak,
        scratch=tracker.peak_with_scratch - tracker.peak,
        stage=tracker.peak_stage,
        stages=tracker.stages,
    )


def measure_peak(run: Callable[[], object], device: torch.device) -> int:
    """Peak of the tensor memory that ``run`` really takes on ``device``, in bytes.

    What was there before does not count. On CUDA it is the caching allocator's statistic, on the
    CPU the sum of all allocations that torch's profiler sees, temporary ones inside operators
    included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    changes = [event for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take together; those that share memory count once."""
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@dataclass
class _Tracker(TorchDispatchMode):
    """Follows every storage that is made, until it is freed.

    Meta kernels are written in Python and slow. As a network repeats itself, block by block and
    chunk by chunk, what a call returns is looked up where an equal call was seen before.
    """

    device: torch.device
    current: int = 0
    peak: int = 0
    peak_with_scratch: int = 0
    peak_stage: str = OUTSIDE
    stages: dict[str, StagePeak] = field(default_factory=dict)

    _stage: str = OUTSIDE
    _stage_peak: int = 0
    _live: dict[int, weakref.ref[torch.UntypedStorage]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):  # inside our own operators nothing has taken it apart yet
            with self:
                return func.decompose(*args, **kwargs)
        scratch = _own_scratch(func, args, kwargs, self.device) if func.namespace == _OURS else 0
        if makes_new_tensors(func):
            result, made = look_up(func, args, kwargs)
            if func is _CONVOLUTION and made:
                how = carry_out(args, result, self.device)
                result, scratch = _laid_out(result, how.layout), how.scratch
                made = [result]
            for output in made:
                self._follow(output.untyped_storage())
        else:
            result = func(*args, **kwargs)
        self.peak_with_scratch = max(self.peak_with_scratch, self.current + scratch)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def forget(_: object) -> None:
            del self._live[key]
            self.current -= size

        self._live[key] = weakref.ref(storage, forget)
        self.current += size
        self._stage_peak = max(self._stage_peak, self.current)
        if self.current > self.peak:
            self.peak, self.peak_stage = self.current, self._stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A listener of :mod:`psssr_fast.runtime.ranges`."""
        before = self._stage_peak = self.current
        self._stage = name
        try:
            yield
        finally:
            self._stage = OUTSIDE
            known = self.stages.get(name)
            if known is None or known.peak < self._stage_peak:
                self.stages[name] = StagePeak(before, self._stage_peak)


class InsteadOfAttention(TorchFunctionMode):
    """Has :meth:`attend` called in place of torch's attention."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.attend(*args[:3])
        return func(*args, **(kwargs or {}))

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The result, ``[batch, heads, tokens, channels of value]``."""


class _FusedAttention(InsteadOfAttention):
    """Attention that only makes its output and what every fused kernel keeps of the scores."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)  # noqa: F841 (lives on)
        batch, heads, tokens, _ = query.shape
        return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)


@cache
def _is_composite(func: OpOverload) -> bool:
    if func.overloadpacket in _WHOLE:
        return False
    return func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


@cache
def makes_new_tensors(func: OpOverload) -> bool:
    """Whether an operator's results share no memory with its arguments, and it changes none."""
    schema = func._schema
    return not any(item.alias_info for item in (*schema.arguments, *schema.returns))


_known_calls: dict[object, list[_Layout]] = {}
_known_scratch: dict[object, int] = {}


def _own_scratch(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> int:
    """What one of our operators takes besides its results, where its reference runs.

    The kernels for a device were written to take nothing.
    """
    operator = _maybe_get_opdef(func)
    if operator is None or device.type in operator._backend_fns:
        return 0
    key = (func, _signature(args), _signature(tuple(kwargs.items())), device.type)
    if key not in _known_scratch:
        inner = _Tracker(device)
        with _FusedAttention(), inner:
            result = operator._init_fn(*args, **kwargs)
        returned = tensor_bytes(x for x in tree_leaves(result) if isinstance(x, Tensor))
        _known_scratch[key] = inner.peak_with_scratch - returned
    return _known_scratch[key]


def look_up(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Sequence[Tensor]]:
    """What ``func`` returns, if possible without calling it, and the tensors that are new."""
    key = (func, _signature(args), _signature(tuple(kwargs.items())))
    layouts = _known_calls.get(key)
    if layouts is not None:
        made = [
            torch.empty_strided(size, stride, dtype=dtype, device="meta")
            for size, stride, dtype in layouts
        ]
        return (made[0] if len(made) == 1 else tuple(made)), made
    result = func(*args, **kwargs)
    outputs = result if isinstance(result, tuple) else (result,)
    given = {
        x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
    }
    if not all(
        isinstance(x, Tensor) and x.is_meta and x.untyped_storage()._cdata not in given
        for x in outputs  # some operators that claim to make new tensors return views
    ):
        return result, ()
    if len(_known_calls) >= _REMEMBERED:
        _known_calls.clear()
    _known_calls[key] = [(x.shape, x.stride(), x.dtype) for x in outputs]
    return result, outputs


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    if x.is_contiguous(memory_format=layout):
        return x
    return torch.empty_like(x, memory_format=layout)


def _signature(value: Any) -> object:
    """Equal for arguments for which an operator returns the same layouts."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    return type(value), value
