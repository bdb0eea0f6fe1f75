"""Attention between the tokens of 3-D tiles and of their neighbours."""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import UsageError


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reach: Sequence[int],
) -> None:
    """Raise UsageError unless the operands fit together."""

    def refuse(problem: str, remedy: str) -> None:
        raise UsageError(f"window_attention: {problem}; {remedy}")

    if q.dim() != 4 or k.dim() != 4 or not q.is_floating_point():
        shapes = f"{q.dtype} {list(q.shape)} and {list(k.shape)}"
        refuse(f"got {shapes}", "pass floating-point [batch, tokens, heads, head_dim]")
    if v.shape != k.shape or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:]):
        shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        refuse(f"got {shapes}", "only the tokens of k and v may differ from those of q")
    if q.dtype != k.dtype or q.dtype != v.dtype:
        refuse(f"got {q.dtype}, {k.dtype}, {v.dtype}", "pass q, k and v of one dtype")
    if not len(grid) == len(window) == len(shift) == len(reach) == 3:
        refuse("grid, window, shift and reach need 3 numbers each", "give time, height, width")
    if prod(grid) != q.shape[1] or min(grid) < 1:
        refuse(f"grid {list(grid)} is not {q.shape[1]} tokens", "pass the grid that q was made of")
    if min(window) < 1 or min(reach) < 0:
        refuse(f"got window {list(window)}, reach {list(reach)}", "pass window >= 1 and reach >= 0")
    if any(not 0 <= move < length for move, length in zip(shift, window, strict=True)):
        refuse(f"got shift {list(shift)}", f"pass 0 <= shift < window {list(window)}")
    whole = all(n + s <= w for n, s, w in zip(grid, shift, window, strict=True))
    if k.shape[1] != q.shape[1] and (not whole or k.shape[1] < 1):
        refuse(
            f"{k.shape[1]} keys for {q.shape[1]} queries",
            "pass as many, or a window that covers the grid",
        )


def _boxes(size: int, window: int, shift: int, reach: int) -> list[tuple[slice, slice]]:
    """Along one axis: the queries of every tile, and the keys that they see."""
    found = []
    for begin in range(-shift, size, window):
        queries = slice(max(0, begin), min(size, begin + window))
        keys = slice(max(0, begin - reach * window), min(size, begin + (reach + 1) * window))
        found.append((queries, keys))
    return found


def window_attention_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    """Compute :func:`window_attention` tile by tile, each by PyTorch's attention."""
    _check(q, k, v, grid, window, shift, reach)
    if k.shape[1] != q.shape[1]:
        return _attend(q, k, v).contiguous()
    q, k, v = (x.unflatten(1, tuple(grid)) for x in (q, k, v))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    axes = (_boxes(*axis) for axis in zip(grid, window, shift, reach, strict=True))
    for (qt, kt), (qh, kh), (qw, kw) in product(*axes):
        tile, keys, values = q[:, qt, qh, qw], k[:, kt, kh, kw], v[:, kt, kh, kw]
        part = _attend(*(x.flatten(1, 3) for x in (tile, keys, values)))
        out[:, qt, qh, qw] = part.unflatten(1, tile.shape[1:4])
    return out.flatten(1, 3)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # SDPA wants heads before tokens
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@torch.library.custom_op("psssr_fast::window_attention", mutates_args=())
def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    """Softmax attention in which a token sees its own tile and the tiles around it.

    The tokens of a clip, in order of time, height and width, are cut into tiles of ``window``;
    tile ``i`` of an axis holds the positions from ``i * window - shift`` on, as far as they lie
    in the grid. A query of tile ``i`` sees the keys of tiles ``i - reach`` to ``i + reach``, on
    every axis: softmax(q k^T / sqrt(head_dim)) v over those. Reach 0 gives separate windows, 1
    the neighbourhood of 27 tiles; a window that covers the grid is full attention.

    Args:
        q: queries, ``[batch, tokens, heads, head_dim]``; fp16, bf16 or fp32.
        k, v: keys and values, shape and dtype of ``q``; of any number of tokens if the window
            covers the grid.
        grid: tokens in time, height and width.
        window: tokens of a tile, on each axis.
        shift: how many tokens before the grid the first tile begins, on each axis; less than
            ``window``.
        reach: how many tiles to either side are seen, on each axis.

    Returns:
        Contiguous tensor of the shape and dtype of ``q``. Not differentiable.

    Raises:
        UsageError: the operands do not fit together, or, on CUDA, ``head_dim`` is not a multiple
            of 16 up to 256.
    """
    return window_attention_ref(q, k, v, grid, window, shift, reach)


@window_attention.register_kernel("cuda")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    from psssr_fast.kernels.window_attention import window_attention_triton

    _check(q, k, v, grid, window, shift, reach)
    return window_attention_triton(q, k, v, grid, window, shift, reach)


@window_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    return q.new_empty(q.shape)
