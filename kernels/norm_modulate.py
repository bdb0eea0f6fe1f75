"""Triton kernel for :func:`psssr_fast.ops.norm_modulate`."""

import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.kernels._launch import launcher
from psssr_fast.kernels._rows import WARPS, dense_channels, load_row, require, require_float
from psssr_fast.kernels._rows import row_tiles as tiles_for


@triton.jit
def _norm_modulate_kernel(
    x_ptr, shift_ptr, scale_ptr, out_ptr,
    tokens, batch_stride, row_stride, shift_stride, scale_stride, eps,
    DIM: tl.constexpr, AFFINE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bound by memory: x is read once and kept; shift and scale come from the L1 cache."""
    blocks = tl.cdiv(tokens, ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < tokens
    row = row.to(tl.int64)  # offsets below can pass 2**31
    tiles = load_row(x_ptr + batch * batch_stride + row * row_stride, inside, DIM, BLOCK)
    # Every row of the tile asks for its own copy: the layout is then that of x, and no layout
    # has to be converted through shared memory. The copies of one thread are loaded once.
    same = tl.zeros([ROWS, 1], tl.int64)
    shifts = load_row(shift_ptr + batch * shift_stride + same, same == 0, DIM, BLOCK)
    scales = load_row(scale_ptr + batch * scale_stride + same, same == 0, DIM, BLOCK)

    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(len(tiles)):
        total += tiles[i].to(tl.float32)
    mean = tl.sum(total, axis=1, keep_dims=True) / DIM

    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(len(tiles)):
        centred = tiles[i].to(tl.float32) - mean
        if DIM % BLOCK != 0:
            centred = tl.where(i * BLOCK + tl.arange(0, BLOCK)[None, :] < DIM, centred, 0.0)
        squares += centred * centred
    rstd = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / DIM + eps)

    for i in tl.static_range(len(tiles)):
        col = i * BLOCK + tl.arange(0, BLOCK)[None, :]
        scale = scales[i].to(tl.float32)
        if not AFFINE:
            scale += 1
        out = (tiles[i].to(tl.float32) - mean) * rstd * scale + shifts[i].to(tl.float32)
        mask = inside
        if DIM % BLOCK != 0:
            mask = inside & (col < DIM)
        tl.store(
            out_ptr + (batch * tokens + row) * DIM + col,
            out.to(out_ptr.dtype.element_ty),
            mask=mask,
        )


@launcher
def norm_modulate_triton(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, affine: bool = False
) -> Tensor:
    """Launch the kernel; arguments as in :func:`psssr_fast.ops.norm_modulate`.

    Raises:
        UsageError: an operand has another shape, dtype or device than ``x`` asks for.
    """
    require_float("norm_modulate", "x", x, rank=3)
    batch, tokens, dim = x.shape
    require("norm_modulate", "shift", shift, (batch, dim), like=x)
    require("norm_modulate", "scale", scale, (batch, dim), like=x)
    x, shift, scale = dense_channels(x), dense_channels(shift), dense_channels(scale)
    out = x.new_empty(batch, tokens, dim)
    tiles = tiles_for(dim, x.dtype)
    _norm_modulate_kernel[(batch * triton.cdiv(tokens, tiles.rows),)](
        x, shift, scale, out,
        tokens, x.stride(0), x.stride(1), shift.stride(0), scale.stride(0), eps,
        DIM=dim, AFFINE=affine, ROWS=tiles.rows, BLOCK=tiles.block, num_warps=WARPS,
    )  # fmt: skip
    return out
