"""How convolutions lay out their results, and what memory they take besides for a moment.

A rehearsal on meta tensors sees neither. On the CPU the rules below were found by measuring torch
2.13: they give what its allocator saw. On CUDA nothing was measured: the rule is the most that
cuDNN needs if it brings both operands into its own layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

_BLOCK = 16  # channels that oneDNN keeps together


@dataclass(frozen=True)
class Convolved:
    """How a convolution is carried out.

    Attributes:
        layout: memory format of the result.
        scratch: bytes that it takes besides the result, and gives back.
    """

    layout: torch.memory_format
    scratch: int


def carry_out(arguments: Sequence[Any], result: Tensor, device: torch.device) -> Convolved:
    """What ``torch.convolution(*arguments)`` does on ``device``.

    Args:
        arguments: input, weight, bias, stride, padding, dilation, transposed, output padding,
            groups; tensors on the meta device.
        result: what it returns there.
        device: where it would run: a CPU or a CUDA device.
    """
    x, weight = arguments[:2]
    if device.type == "cpu":
        backend = _cpu_backend(x.shape, weight.shape, x.dtype, *map(_hashable, arguments[3:9]))
        if backend.startswith("Slow"):
            return Convolved(torch.contiguous_format, _columns(x, weight, result))
    last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    if not any(y.is_contiguous(memory_format=last) and not y.is_contiguous() for y in (x, weight)):
        copies = _reordered(x, weight, result) if device.type == "cpu" else x.nbytes + result.nbytes
        return Convolved(torch.contiguous_format, copies)
    copied = 0 if x.is_contiguous(memory_format=last) else x.nbytes
    return Convolved(last, copied + weight.nbytes)


def _columns(x: Tensor, weight: Tensor, result: Tensor) -> int:
    """What torch's own convolutions need: the input once for every tap."""
    copied = 0 if x.is_contiguous() else x.nbytes
    if prod(weight.shape[2:]) == 1:
        return copied
    return copied + weight[0].numel() * result[:, 0].numel() * x.element_size()


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _reordered(x: Tensor, weight: Tensor, result: Tensor) -> int:
    """What oneDNN needs for operands with channels in blocks, besides the result as it leaves."""
    outer, inner, *kernel = weight.shape
    wide = (_up(outer) * _up(inner) * prod(kernel)) * x.element_size()
    blocked = result.nbytes // result.shape[1] * _up(result.shape[1])
    source = x.nbytes // x.shape[1] * _up(x.shape[1]) if x.shape[1] >= _BLOCK else 0
    # Either the operands wait for the product, or the product to be brought into order.
    return max(source + wide + blocked - result.nbytes, blocked)


def _up(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK


@lru_cache(maxsize=1024)
def _cpu_backend(
    x: Sequence[int], weight: Sequence[int], dtype: torch.dtype, *arguments: Any
) -> str:
    """Which of its convolutions torch would choose on this CPU."""
    element = torch.empty((), dtype=dtype, device="cpu")
    chosen = torch._C._select_conv_backend(
        element.expand(x), element.expand(weight), None, *arguments
    )
    return chosen.name
