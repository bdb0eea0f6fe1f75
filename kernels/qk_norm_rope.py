"""Triton kernel for :func:`psssr_fast.ops.qk_norm_rope`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.kernels._launch import launcher
from psssr_fast.kernels._rows import WARPS, dense_channels, load_row, require, require_float
from psssr_fast.kernels._rows import row_tiles as tiles_for


@triton.jit
def _inverse_rms(tiles, eps, DIM: tl.constexpr):
    squares = tl.zeros(tiles[0].shape, tl.float32)
    for i in tl.static_range(len(tiles)):
        squares += tiles[i].to(tl.float32) * tiles[i].to(tl.float32)
    return tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / DIM + eps)


@triton.jit
def _rotate(x, cos, sin):
    """Turn adjacent pairs of channels. A thread holds both of a pair: nothing is exchanged."""
    rows: tl.constexpr = x.shape[0]
    block: tl.constexpr = x.shape[1]
    even, odd = tl.split(tl.reshape(x, [rows, block // 2, 2]))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [rows, block])


@triton.jit
def _load_table(row_ptr, inside, DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """What each tile of a row needs of the table of a head; one entry if all need the same."""
    tables = ()
    # Whole heads to a tile: every tile begins with a new head.
    for start in tl.static_range(0, BLOCK if BLOCK // 2 % HALF == 0 else DIM, BLOCK):
        pair = (start // 2 + tl.arange(0, BLOCK // 2)[None, :]) % HALF
        tables += (tl.load(row_ptr + pair, mask=inside, other=0.0),)
    return tables


@triton.jit
def _finish(tiles, weights, cos, sin, out_ptr, inside, eps, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Normalise, weight, rotate and store the rows in ``tiles``; no table, no rotation."""
    scale = _inverse_rms(tiles, eps, DIM)
    for i in tl.static_range(len(tiles)):
        x = tiles[i].to(tl.float32) * scale * weights[i].to(tl.float32)
        if len(cos) > 0:
            x = _rotate(x, cos[i % len(cos)], sin[i % len(cos)])
        col = i * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = inside
        if DIM % BLOCK != 0:
            mask = inside & (col < DIM)
        tl.store(out_ptr + col, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _qk_norm_rope_kernel(
    q_ptr, k_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr,
    q_tokens, k_tokens, q_batch_stride, q_row_stride, k_batch_stride, k_row_stride, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bound by memory: q and k are read once, both in flight together, and written once."""
    blocks = tl.cdiv(tl.maximum(q_tokens, k_tokens), ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)[:, None]
    q_inside, k_inside = row < q_tokens, row < k_tokens
    row = row.to(tl.int64)  # offsets below can pass 2**31
    q = load_row(q_ptr + batch * q_batch_stride + row * q_row_stride, q_inside, DIM, BLOCK)
    k = load_row(k_ptr + batch * k_batch_stride + row * k_row_stride, k_inside, DIM, BLOCK)
    # One copy of the weights for each row, as in norm_modulate: their layout is then that of q.
    same = tl.zeros([ROWS, 1], tl.int32)
    q_weight = load_row(q_weight_ptr + same, same == 0, DIM, BLOCK)
    k_weight = load_row(k_weight_ptr + same, same == 0, DIM, BLOCK)
    cos, sin = (), ()
    if cos_ptr is not None:
        cos = _load_table(cos_ptr + row * HALF, q_inside, DIM, HALF, BLOCK)
        sin = _load_table(sin_ptr + row * HALF, q_inside, DIM, HALF, BLOCK)
    q_out_ptr += (batch * q_tokens + row) * DIM
    k_out_ptr += (batch * k_tokens + row) * DIM
    _finish(q, q_weight, cos, sin, q_out_ptr, q_inside, eps, DIM, BLOCK)
    _finish(k, k_weight, cos, sin, k_out_ptr, k_inside, eps, DIM, BLOCK)


def _check(
    q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], tables: tuple[Tensor, ...], heads: int
) -> None:
    """Raise UsageError for operands that do not fit together."""
    require_float("qk_norm_rope", "q", q, rank=3)
    require_float("qk_norm_rope", "k", k, rank=3)
    batch, tokens, dim = q.shape
    if heads < 1 or dim % (2 * heads):
        raise UsageError(
            f"qk_norm_rope: {heads} heads of {dim} channels; needed is an even number of "
            "channels for each head: pass the heads that q was projected for"
        )
    keys = tokens if tables else k.shape[1]  # a table has one row for each token of both
    require("qk_norm_rope", "k", k, (batch, keys, dim), like=q)
    for name, weight in zip(("q_weight", "k_weight"), weights, strict=True):
        require("qk_norm_rope", name, weight, (dim,), like=q)
    for name, table in zip(("cos", "sin"), tables, strict=False):
        shape = (tokens, dim // heads // 2)
        require("qk_norm_rope", name, table, shape, like=q.new_empty(0, dtype=torch.float32))


@launcher
def qk_norm_rope_triton(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments as in :func:`psssr_fast.ops.qk_norm_rope`.

    Raises:
        UsageError: an operand has another shape, dtype or device than ``q`` asks for.
    """
    if (cos is None) != (sin is None):
        raise UsageError("qk_norm_rope: one of cos and sin is missing: pass both, or neither")
    tables = () if cos is None or sin is None else (cos.contiguous(), sin.contiguous())
    _check(q, k, (q_weight, k_weight), tables, heads)
    batch, _, dim = q.shape
    q, k = dense_channels(q), dense_channels(k)
    q_out, k_out = (x.new_empty(*x.shape[:2], heads, dim // heads) for x in (q, k))
    tiles = tiles_for(dim, q.dtype)
    rows = max(q.shape[1], k.shape[1])
    _qk_norm_rope_kernel[(batch * triton.cdiv(rows, tiles.rows),)](
        q, k, q_weight.contiguous(), k_weight.contiguous(), *(tables or (None, None)),
        q_out, k_out, q.shape[1], k.shape[1],
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), eps,
        DIM=dim, HALF=dim // heads // 2, ROWS=tiles.rows, BLOCK=tiles.block, num_warps=WARPS,
    )  # fmt: skip
    return q_out, k_out
