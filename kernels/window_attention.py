"""Triton kernel for :func:`psssr_fast.ops.window_attention`.

A program has one block of a tile's queries. What they see is a box of the grid, whatever the reach,
and the program goes through it block by block; a block is T x H x W tokens, so that a descriptor
fetches it in one piece. Nothing is copied or padded, and what lies outside of the box is not read
unless it shares a block with something inside.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import e, log2, prod

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from psssr_fast.errors import UsageError
from psssr_fast.kernels._launch import architecture, launcher

Triple = tuple[int, int, int]  # of time, height and width


@triton.jit
def _span(tile, size, window, shift, reach):
    """First and last (excluded) position, on one axis, of a tile and what it reaches."""
    begin = tl.maximum((tile - reach) * window - shift, 0)
    return begin, tl.minimum((tile + reach + 1) * window - shift, size)


@triton.jit
def _inside(t, h, w, end, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Which tokens of the T x H x W block that begins at (t, h, w) lie before ``end``."""
    index = tl.arange(0, T * H * W)
    place_t, place_h, place_w = t + index // (H * W), h + index // W % H, w + index % W
    return (place_t < end[0]) & (place_h < end[1]) & (place_w < end[2])


@triton.jit
def _tokens(t, h, w, size, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Numbers of the tokens of the block that begins at (t, h, w); int64 for what follows."""
    index = tl.arange(0, T * H * W)
    row = (t + index // (H * W)).to(tl.int64) * size[1] + h + index // W % H
    return row * size[2] + w + index % W


@triton.jit
def _next(t, h, w, begin, end, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Where the next block begins, width fastest."""
    row_ends = w + W >= end[2]
    plane_ends = row_ends & (h + H >= end[1])
    w = tl.where(row_ends, begin[2], w + W)
    h = tl.where(plane_ends, begin[1], tl.where(row_ends, h + H, h))
    return tl.where(plane_ends, t + T, t), h, w


@triton.jit
def _fetch(
    source, offsets, stride, seen, batch, t, h, w, column, mask,
    TMA: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The block of keys or values that begins at (t, h, w), ``[ROWS, WIDTH]``."""
    if TMA:  # what lies outside of the grid comes as zeros
        block = source.load([batch, t, h, w, column]).reshape(ROWS, WIDTH)
    else:
        place = source + ((t.to(tl.int64) * seen[1] + h) * seen[2] + w) * stride + offsets
        block = tl.load(place) if mask is None else tl.load(place, mask=mask, other=0.0)
    return block


@triton.jit
def _attend(
    state, first, last, q, k, v, k_offsets, v_offsets, k_stride, v_stride, scale, seen, batch,
    column, begin, end, MASKED: tl.constexpr, TMA: tl.constexpr, AHEAD: tl.constexpr,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Online softmax over key blocks ``first`` to ``last`` (excluded)."""
    scores, peak, total, acc, t, h, w = state
    for _ in tl.range(first, last):
        t_next, h_next, w_next = _next(t, h, w, begin, end, T, H, W)
        if MASKED:
            inside = _inside(t, h, w, end, T, H, W)
            mask = inside[:, None] & (tl.arange(0, WIDTH) < HEAD_DIM)[None]
        elif WIDTH > HEAD_DIM:
            mask = (tl.arange(0, WIDTH) < HEAD_DIM)[None]
        else:
            mask = None
        if AHEAD:
            # The tensor cores compute the next block's scores while the others do this one's
            # softmax. What comes after the last block is not used.
            keys = k.load([batch, t_next, h_next, w_next, column]).reshape(T * H * W, WIDTH)
            scores_next = tl.dot(q, keys.T, input_precision="ieee")
        else:
            keys = _fetch(
                k, k_offsets, k_stride, seen, batch, t, h, w, column, mask, TMA, T * H * W, WIDTH
            )
            scores = tl.dot(q, keys.T, input_precision="ieee")
            scores_next = scores
        if MASKED:
            scores = tl.where(inside[None], scores, float("-inf"))
        # Every block holds a key of the box, so that the maximum is finite.
        highest = tl.maximum(peak, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - highest[:, None])
        fade = tl.exp2(peak - highest)
        total = total * fade + tl.sum(p, 1)
        values = _fetch(
            v, v_offsets, v_stride, seen, batch, t, h, w, column, mask, TMA, T * H * W, WIDTH
        )
        acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision="ieee")
        peak, scores = highest, scores_next
        t, h, w = t_next, h_next, w_next
    return scores, peak, total, acc, t, h, w


@triton.jit
def _window_attention_kernel(
    q, k, v, out_ptr, scale, size, seen, window, shift, reach, tiles, blocks,
    q_strides, k_strides, v_strides, out_strides,
    TMA: tl.constexpr, AHEAD: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    QT: tl.constexpr, QH: tl.constexpr, QW: tl.constexpr,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = QT * QH * QW
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = head * HEAD_DIM
    tile = block // (blocks[0] * blocks[1] * blocks[2])
    block = block % (blocks[0] * blocks[1] * blocks[2])
    tile_t, tile_h = tile // (tiles[1] * tiles[2]), tile // tiles[2] % tiles[1]
    tile_w = tile % tiles[2]
    t, t_end = _span(tile_t, size[0], window[0], shift[0], 0)
    h, h_end = _span(tile_h, size[1], window[1], shift[1], 0)
    w, w_end = _span(tile_w, size[2], window[2], shift[2], 0)
    t += block // (blocks[1] * blocks[2]) * QT
    h += block // blocks[2] % blocks[1] * QH
    w += block % blocks[2] * QW
    if (t >= t_end) | (h >= h_end) | (w >= w_end):  # the grid's border cut this tile short
        return

    cols = tl.arange(0, WIDTH)
    if TMA:
        queries = q.load([batch, t, h, w, column]).reshape(ROWS, WIDTH)
        if AHEAD:
            # What was computed stays in registers: with 64 keys, wgmma that reads queries and
            # keys both from shared memory is bound by its 128 bytes a clock.
            queries = queries + 0.0
        k_offsets, v_offsets = 0, 0
    else:
        token = _tokens(t, h, w, size, QT, QH, QW)[:, None]
        real = _inside(t, h, w, (t_end, h_end, w_end), QT, QH, QW)[:, None]
        q += batch.to(tl.int64) * q_strides[0] + column
        real = real & (cols < HEAD_DIM)[None]
        queries = tl.load(q + token * q_strides[1] + cols[None], mask=real, other=0.0)
        inner = _tokens(0, 0, 0, seen, T, H, W)[:, None]
        k_offsets, v_offsets = inner * k_strides[1] + cols[None], inner * v_strides[1] + cols[None]
        k += batch.to(tl.int64) * k_strides[0] + column
        v += batch.to(tl.int64) * v_strides[0] + column

    t0, t1 = _span(tile_t, seen[0], window[0], shift[0], reach[0])
    h0, h1 = _span(tile_h, seen[1], window[1], shift[1], reach[1])
    w0, w1 = _span(tile_w, seen[2], window[2], shift[2], reach[2])
    planes, rows, columns = tl.cdiv(t1 - t0, T), tl.cdiv(h1 - h0, H), tl.cdiv(w1 - w0, W)
    # How many blocks, from the first on, lie inside the box and need no mask.
    even = ((h1 - h0) % H == 0) & ((w1 - w0) % W == 0)
    full = tl.where(even, (t1 - t0) // T * rows * columns, 0)
    if T * H == 1:
        full = tl.where(planes * rows == 1, (w1 - w0) // W, full)

    peak = tl.full([ROWS], float("-inf"), tl.float32)  # of scores in units of log 2
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    scores = tl.zeros([ROWS, T * H * W], tl.float32)
    if AHEAD:
        keys = k.load([batch, t0, h0, w0, column]).reshape(T * H * W, WIDTH)
        scores = tl.dot(queries, keys.T, input_precision="ieee")
    state = (scores, peak, total, acc, t0, h0, w0)
    begin, end = (t0, h0, w0), (t1, h1, w1)
    state = _attend(
        state, 0, full, queries, k, v, k_offsets, v_offsets, k_strides[1], v_strides[1], scale,
        seen, batch, column, begin, end, False, TMA, AHEAD, HEAD_DIM, WIDTH, T, H, W,
    )  # fmt: skip
    state = _attend(
        state, full, planes * rows * columns, queries, k, v, k_offsets, v_offsets, k_strides[1],
        v_strides[1], scale, seen, batch, column, begin, end, True, TMA, AHEAD, HEAD_DIM, WIDTH,
        T, H, W,
    )  # fmt: skip

    # After the last block the width is back at its beginning, which the compiler cannot know:
    # it computes the addresses below anew instead of keeping those of the queries in registers.
    zero = state[6] - w0
    t, h, w = t + zero, h + zero, w + zero
    token = _tokens(t, h, w, size, QT, QH, QW)[:, None]
    real = _inside(t, h, w, (t_end, h_end, w_end), QT, QH, QW)[:, None] & (cols < HEAD_DIM)[None]
    out_ptr += batch.to(tl.int64) * out_strides[0] + column
    out = state[3] * (1 / state[2])[:, None]
    tl.store(out_ptr + token * out_strides[1] + cols[None], out, mask=real)


@dataclass(frozen=True)
class Config:
    """How the kernel runs.

    Attributes:
        queries, keys: tokens of a block of each, at most.
        warps, stages: of a program.
        tma: fetch by descriptor.
        ahead: compute the next block's scores during this one's softmax; needs ``tma``.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    tma: bool = False
    ahead: bool = False


# By the head's width, rounded up to a power of two; up to 64 is one class. In half precision the
# tensor cores bound the kernel at 128 and the exponentials (16 a clock) below, so the two must
# overlap: up to 64 two programs of 64 keys share a multiprocessor; at 128 their registers do not
# fit, and `ahead` interleaves the two within one. 128 queries read a byte from L2 in 128 FLOP.
_AMPERE = {
    64: Config(128, 64, 4, 3),
    128: Config(128, 64, 8, 3),
    256: Config(64, 32, 8, 2),
}
_HOPPER = {
    64: Config(128, 64, 8, 3, tma=True),
    128: Config(128, 64, 8, 3, tma=True, ahead=True),
    256: Config(128, 32, 8, 2, tma=True),
}
_BLACKWELL = {
    64: Config(128, 64, 8, 3, tma=True),
    128: Config(128, 128, 8, 2, tma=True),
    256: Config(128, 64, 8, 2, tma=True),
}
_POINTERS = {  # Hopper and Blackwell, for heads that no descriptor can cut out
    64: Config(128, 64, 8, 3),
    128: Config(128, 64, 8, 2),
    256: Config(128, 32, 8, 2),
}
_FP32 = {64: Config(32, 16, 4, 2), 128: Config(32, 16, 4, 2), 256: Config(32, 16, 8, 2)}


def choose_config(arch: int, dtype: torch.dtype, head_dim: int) -> Config:
    """The launch configuration for a compute capability (80, 90, 100) and a problem."""
    width = max(64, triton.next_power_of_2(head_dim))
    if dtype == torch.float32:
        return _FP32[width]
    if arch // 10 not in (9, 10, 11):  # Ampere, Ada, and Blackwell without its tensor memory
        return _AMPERE[width]
    if head_dim & (head_dim - 1):
        return _POINTERS[width]
    return (_HOPPER if arch // 10 == 9 else _BLACKWELL)[width]


def block_shape(box: Triple, tokens: int) -> Triple:
    """The block of ``tokens`` (a power of two) of which the fewest cover ``box``; widest first."""
    powers = [2**i for i in range(tokens.bit_length())]
    shapes = [(t, h, tokens // (t * h)) for t in powers for h in powers if t * h <= tokens]
    return min(shapes, key=lambda shape: (_count(box, shape), shape))


def _count(box: Triple, block: Triple) -> int:
    return prod(-(-size // length) for size, length in zip(box, block, strict=True))


def _triple(numbers: Iterable[int]) -> Triple:
    t, h, w = numbers
    return t, h, w


@dataclass(frozen=True)
class Plan:
    """The geometry of a launch: of tiles, what they reach, and the blocks they are cut into."""

    config: Config
    grid: Triple
    seen: Triple  # grid of the keys
    window: Triple
    shift: Triple
    reach: Triple
    tiles: Triple
    query_block: Triple
    key_block: Triple

    @property
    def blocks(self) -> Triple:
        """Query blocks of a tile."""
        return _triple(-(-w // b) for w, b in zip(self.window, self.query_block, strict=True))


@lru_cache(maxsize=256)
def _plan(
    config: Config, grid: Triple, keys: int, window: Triple, shift: Triple, reach: Triple
) -> Plan:
    shifted = [n + s for n, s in zip(grid, shift, strict=True)]
    window = _triple(min(n, w) for n, w in zip(shifted, window, strict=True))
    tiles = _triple(-(-n // w) for n, w in zip(shifted, window, strict=True))
    seen, reach = grid, _triple(min(r, n) for r, n in zip(reach, tiles, strict=True))
    if keys != prod(grid):  # one tile that sees all keys, however far they go
        seen = (1, 1, keys)
        reach = (0, 0, -(-keys // window[2]) + 1)
    box = _triple(min(n, (2 * r + 1) * w) for n, w, r in zip(seen, window, reach, strict=True))
    return Plan(
        config, grid, seen, window, shift, reach, tiles,
        query_block=block_shape(window, min(config.queries, _at_least_16(prod(window)))),
        key_block=block_shape(box, min(config.keys, _at_least_16(prod(box)))),
    )  # fmt: skip


def _at_least_16(tokens: int) -> int:
    return max(16, triton.next_power_of_2(tokens))


def _strides(x: Tensor) -> tuple[int, int]:
    """Of batch and token; axes of one entry have any, so these say what the others would."""
    batch, tokens, heads, head_dim = x.shape
    token = x.stride(1) if tokens > 1 else heads * head_dim
    return x.stride(0) if batch > 1 else tokens * token, token


def _readable(x: Tensor) -> Tensor:
    """``x``, copied unless its heads lie side by side and its rows are apart and aligned."""
    (batch, token), row = _strides(x), x.shape[2] * x.shape[3]
    aligned = token % 16 == 0 and batch % 16 == 0 and x.data_ptr() % 16 == 0
    dense = x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == x.shape[3])
    return x if aligned and dense and token >= row and batch >= token else x.contiguous()


def _descriptor(x: Tensor, grid: Triple, block: Triple) -> TensorDescriptor:
    """``x`` as ``[batch, time, height, width, heads * head_dim]``, read one block of a head at a
    time; what lies outside is zero."""
    batch, token = _strides(x)
    return TensorDescriptor(
        x,
        [x.shape[0], *grid, x.shape[2] * x.shape[3]],
        [batch, token * grid[1] * grid[2], token * grid[2], token, 1],
        [1, *block, x.shape[3]],
    )


def _check(q: Tensor) -> None:
    batch, _, heads, head_dim = q.shape
    if head_dim % 16 or not 16 <= head_dim <= 256:
        raise UsageError(
            f"window_attention: head_dim {head_dim}; the CUDA kernel needs a multiple of 16 up to "
            "256; use attention='sdpa'"
        )
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise UsageError(
            f"window_attention: got {q.dtype}; the CUDA kernel needs fp16, bf16 or fp32; convert q"
        )
    if max(batch, heads) > 65535:
        raise UsageError(
            f"window_attention: batch {batch}, {heads} heads; the CUDA kernel takes 65535 of each; "
            "split the batch"
        )


@launcher
def window_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    _check(q)
    batch, _, heads, head_dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    config = choose_config(architecture(q), q.dtype, head_dim)
    geometry = (_triple(numbers) for numbers in (window, shift, reach))
    plan = _plan(config, _triple(grid), k.shape[1], *geometry)
    q, k, v = _readable(q), _readable(k), _readable(v)
    strides = [_strides(x) for x in (q, k, v, out)]
    if config.tma:
        operands = [_descriptor(q, plan.grid, plan.query_block)]
        operands += [_descriptor(x, plan.seen, plan.key_block) for x in (k, v)]
    else:
        operands = [q, k, v]
    _window_attention_kernel[(prod(plan.blocks) * prod(plan.tiles), heads, batch)](
        *operands, out, head_dim**-0.5 * log2(e), plan.grid, plan.seen, plan.window, plan.shift,
        plan.reach, plan.tiles, plan.blocks, *strides,
        TMA=config.tma, AHEAD=config.ahead,
        HEAD_DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim),
        QT=plan.query_block[0], QH=plan.query_block[1], QW=plan.query_block[2],
        T=plan.key_block[0], H=plan.key_block[1], W=plan.key_block[2],
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out
