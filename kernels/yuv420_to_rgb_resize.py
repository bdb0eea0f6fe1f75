"""Triton kernel for :func:`psssr_fast.ops.yuv420_to_rgb_resize`.

A thread makes ROWS rows of one 16-byte store a channel. Neighbouring outputs share samples: x4, in
16 bits, it fetches 70 for 32 pixels, where each pixel has 48 taps. That costs 61 instructions a
pixel, 36 of them multiply-adds, for 6 bytes stored; arithmetic and memory take about equally long.
"""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.kernels._bicubic import stretches
from psssr_fast.kernels._launch import launcher

ROWS = 4
BLOCK = 64  # threads of a program
LONGEST = 11  # samples of luma and chroma a row with which a thread can make eight outputs


@triton.jit
def _load_weights(weights_ptr, column, padded, LENGTH: tl.constexpr):
    weights = ()
    for place in tl.static_range(LENGTH):
        weights += (tl.load(weights_ptr + place * padded + column),)
    return weights


@triton.jit
def _interpolate(plane_ptr, last, first, weights, LENGTH: tl.constexpr):
    """One row of a plane at the output's columns: [groups, GROUP]."""
    row = 0.0
    for place in tl.static_range(LENGTH):
        sample = tl.load(plane_ptr + tl.minimum(tl.maximum(first + place, 0), last))
        row += sample.to(tl.float32)[:, None] * weights[place]
    return row


@triton.jit
def _add_row(rows, row, weights_ptr, ROWS: tl.constexpr):
    """Add a row of the plane to the output rows it reaches, with their weights for it."""
    added = ()
    for place in tl.static_range(ROWS):
        added += (rows[place] + tl.load(weights_ptr + place) * row,)
    return added


_SIZES = (
    "frames", "h", "w", "luma_frame", "luma_row", "chroma_frame", "chroma_row", "height",
    "width_units",
)  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _yuv420_to_rgb_resize_kernel(
    y_ptr, u_ptr, v_ptr, out_ptr,
    y_first_row, y_row_weights, y_first_column, y_column_weights,
    c_first_row, c_row_weights, c_first_column, c_column_weights,
    frames, h, w, luma_frame, luma_row, chroma_frame, chroma_row, height, width_units,
    luma_gain, luma_bias, chroma_zero, red_v, green_u, green_v, blue_u,
    Y_ROWS: tl.constexpr, Y_COLUMNS: tl.constexpr, C_ROWS: tl.constexpr, C_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    width = width_units * UNIT  # tells Triton that rows are aligned to whole stores
    groups = tl.cdiv(width, GROUP)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row_group = tl.program_id(1)
    group = index % groups
    inside = index // groups < frames
    frame = tl.minimum(index // groups, frames - 1).to(tl.int64)  # int64: offsets pass 2**31
    column = (group * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    zero = tl.zeros((BLOCK, GROUP), tl.float32)
    padded_rows = tl.num_programs(1) * ROWS

    y, u, v = (), (), ()
    for _ in tl.static_range(ROWS):
        y += (zero,)
        u += (zero - chroma_zero,)
        v += (zero - chroma_zero,)

    weights = _load_weights(c_column_weights, column, groups * GROUP, C_COLUMNS)
    first = tl.load(c_first_column + group)
    first_row = tl.load(c_first_row + row_group)
    last_row, last = (h + 1) // 2 - 1, (w + 1) // 2 - 1
    for place in tl.static_range(C_ROWS):
        row = tl.minimum(tl.maximum(first_row + place, 0), last_row).to(tl.int64)
        at = frame * chroma_frame + row * chroma_row
        row_weights = c_row_weights + place * padded_rows + row_group * ROWS
        u_row = _interpolate(u_ptr + at, last, first, weights, C_COLUMNS)
        u = _add_row(u, u_row, row_weights, ROWS)
        v_row = _interpolate(v_ptr + at, last, first, weights, C_COLUMNS)
        v = _add_row(v, v_row, row_weights, ROWS)

    weights = _load_weights(y_column_weights, column, groups * GROUP, Y_COLUMNS)
    first = tl.load(y_first_column + group)
    first_row = tl.load(y_first_row + row_group)
    for place in tl.static_range(Y_ROWS):
        row = tl.minimum(tl.maximum(first_row + place, 0), h - 1).to(tl.int64)
        at = frame * luma_frame + row * luma_row
        row_weights = y_row_weights + place * padded_rows + row_group * ROWS
        y_row = _interpolate(y_ptr + at, w - 1, first, weights, Y_COLUMNS)
        y = _add_row(y, y_row, row_weights, ROWS)

    plane = height.to(tl.int64) * width
    for place in tl.static_range(ROWS):
        row = row_group * ROWS + place
        at = out_ptr + frame[:, None] * (3 * plane) + row.to(tl.int64) * width + column
        stored = inside[:, None] & (column < width) & (row < height)
        gray = y[place] * luma_gain + luma_bias
        red = gray + red_v * v[place]
        green = gray + green_u * u[place] + green_v * v[place]
        blue = gray + blue_u * u[place]
        tl.store(at, tl.clamp(red, -1.0, 1.0), mask=stored)
        tl.store(at + plane, tl.clamp(green, -1.0, 1.0), mask=stored)
        tl.store(at + 2 * plane, tl.clamp(blue, -1.0, 1.0), mask=stored)


@launcher
def yuv420_to_rgb_resize_triton(
    luma: Tensor,
    chroma_u: Tensor,
    chroma_v: Tensor,
    height: int,
    width: int,
    decoding: tuple[float, ...],
    chroma_shift: float,
    dtype: torch.dtype,
) -> Tensor:
    """Launch once; ``decoding`` is :class:`psssr_fast.ops._yuv.Decoding`.

    Before a call is captured in a CUDA graph, one with the same sizes must have been made: it
    puts the weights on the device.
    """
    frames, h, w = luma.shape
    out = luma.new_empty((frames, 3, height, width), dtype=dtype)
    if out.numel() == 0:
        return out
    luma, u, v = (
        plane if plane.stride(2) == 1 else plane.contiguous()
        for plane in (luma, chroma_u, chroma_v)
    )
    if u.stride() != v.stride():
        u, v = u.contiguous(), v.contiguous()
    group = 16 // dtype.itemsize
    y_columns = stretches(group, w, width, 1, 0.0, luma.device)
    c_columns = stretches(group, w, width, 2, chroma_shift, luma.device)
    if width % group or y_columns.length + c_columns.length > LONGEST:
        group = 4
        y_columns = stretches(group, w, width, 1, 0.0, luma.device)
        c_columns = stretches(group, w, width, 2, chroma_shift, luma.device)
    y_rows = stretches(ROWS, h, height, 1, 0.0, luma.device)
    c_rows = stretches(ROWS, h, height, 2, 0.5, luma.device)
    unit = gcd(width, group)
    grid = (triton.cdiv(frames * triton.cdiv(width, group), BLOCK), triton.cdiv(height, ROWS))
    _yuv420_to_rgb_resize_kernel[grid](
        luma, u, v, out,
        y_rows.first, y_rows.weights, y_columns.first, y_columns.weights,
        c_rows.first, c_rows.weights, c_columns.first, c_columns.weights,
        frames, h, w, luma.stride(0), luma.stride(1), u.stride(0), u.stride(1), height,
        width // unit, *decoding,
        Y_ROWS=y_rows.length, Y_COLUMNS=y_columns.length,
        C_ROWS=c_rows.length, C_COLUMNS=c_columns.length,
        ROWS=ROWS, GROUP=group, UNIT=unit, BLOCK=BLOCK, num_warps=BLOCK // 32,
    )  # fmt: skip
    return out
