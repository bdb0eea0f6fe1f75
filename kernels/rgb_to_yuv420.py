"""Triton kernel for :func:`psssr_fast.ops.rgb_to_yuv420`.

A thread reads 16 bytes of two rows of each channel and makes everything that depends on them, so
the picture is read once; only the pixel to their left is read again, for chroma's filter. At 37
instructions a pixel for 7.5 bytes (16-bit pictures) memory bounds it.
"""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.kernels._launch import launcher

BLOCK = 128  # threads of a program


@triton.jit
def _load(pixels_ptr, mask):
    x = tl.load(pixels_ptr, mask=mask, other=0.0).to(tl.float32)
    return tl.minimum(tl.where(x > -1.0, x, -1.0), 1.0)  # not maximum(): NaN too becomes -1


@triton.jit
def _shift_right(x, entering, BLOCK: tl.constexpr, LENGTH: tl.constexpr):
    """``[entering, x[0], ..., x[-2]]`` along the second axis, which one thread holds."""
    if LENGTH == 1:
        return entering
    else:  # Triton compiles what follows a return
        even, odd = tl.split(tl.reshape(x, (BLOCK, LENGTH // 2, 2)))
        odd = _shift_right(odd, entering, BLOCK, LENGTH // 2)
        return tl.reshape(tl.join(odd, even), (BLOCK, LENGTH))


@triton.jit
def _chroma_average(top, bottom, left, right_inside, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """[1 2 1] / 4 around even columns, mean of two rows."""
    even, odd = tl.split(tl.reshape(top + bottom, (BLOCK, GROUP // 2, 2)))
    odd = tl.where(right_inside, odd, even)
    return (_shift_right(odd, left, BLOCK, GROUP // 2) + 2.0 * even + odd) * 0.125


@triton.jit
def _store_levels(plane_ptr, levels, mask):
    # Adding 1.5 * 2**23 rounds to whole numbers, halves to even, into the low bits.
    bits = (levels + 12582912.0).to(tl.int32, bitcast=True) & 0xFFFF
    tl.store(plane_ptr, bits.to(plane_ptr.dtype.element_ty), mask=mask)


_SIZES = ("frames", "height", "width_units", "frame_units", "channel_units", "row_units")


@triton.jit(do_not_specialize=_SIZES)
def _rgb_to_yuv420_kernel(
    picture_ptr, y_ptr, u_ptr, v_ptr,
    frames, height, width_units, frame_units, channel_units, row_units, peak,
    y_red, y_green, y_blue, y_zero, u_red, u_green, u_blue, u_zero, v_red, v_green, v_blue, v_zero,
    GROUP: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Units tell Triton that rows are aligned to whole loads and stores. int64: offsets pass 2**31.
    width = width_units * UNIT
    row_stride = row_units.to(tl.int64) * UNIT
    channel_stride = channel_units.to(tl.int64) * UNIT
    frame_stride = frame_units.to(tl.int64) * UNIT
    chroma_width = (width_units + 1) // 2 if UNIT == 1 else width_units * (UNIT // 2)
    groups = tl.cdiv(width, GROUP)
    index = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    group = index % groups
    frame = (index // groups).to(tl.int64)
    pair = tl.program_id(1)
    column = group * GROUP + tl.arange(0, GROUP)[None, :]
    chroma_column = group * (GROUP // 2) + tl.arange(0, GROUP // 2)[None, :]
    inside = frame < frames
    loaded = inside & (column < width)
    right_inside = 2 * chroma_column + 1 < width
    before = tl.maximum(group * GROUP - 1, 0)

    top_row = 2 * pair * row_stride
    bottom_row = tl.minimum(2 * pair + 1, height - 1) * row_stride
    pixels_ptr = picture_ptr + frame * frame_stride
    top = tl.zeros((BLOCK, GROUP), tl.float32) + y_zero
    bottom = top
    u = tl.zeros((BLOCK, GROUP // 2), tl.float32) + u_zero
    v = tl.zeros((BLOCK, GROUP // 2), tl.float32) + v_zero
    for channel in tl.static_range(3):
        y_weight = y_red if channel == 0 else y_green if channel == 1 else y_blue
        u_weight = u_red if channel == 0 else u_green if channel == 1 else u_blue
        v_weight = v_red if channel == 0 else v_green if channel == 1 else v_blue
        above_ptr = pixels_ptr + (channel * channel_stride + top_row)
        below_ptr = pixels_ptr + (channel * channel_stride + bottom_row)
        above = _load(above_ptr + column, loaded)
        below = _load(below_ptr + column, loaded)
        left = _load(above_ptr + before, inside) + _load(below_ptr + before, inside)
        top += y_weight * above
        bottom += y_weight * below
        average = _chroma_average(above, below, left, right_inside, BLOCK, GROUP)
        u += u_weight * average
        v += v_weight * average

    at = y_ptr + (frame * height + 2 * pair) * width + column
    _store_levels(at, top, loaded)
    _store_levels(at + width, bottom, loaded & (2 * pair + 1 < height))
    at = (frame * tl.num_programs(1) + pair) * chroma_width + chroma_column
    stored = inside & (chroma_column < chroma_width)
    _store_levels(u_ptr + at, tl.minimum(u, peak), stored)  # full range can reach half a level more
    _store_levels(v_ptr + at, tl.minimum(v, peak), stored)


@launcher
def rgb_to_yuv420_triton(
    picture: Tensor, encoding: tuple[tuple[float, ...], ...], bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch once; ``encoding`` is what :func:`psssr_fast.ops._yuv.encoding` returns."""
    frames, _, height, width = picture.shape
    storage = torch.uint8 if bits == 8 else torch.int16
    y = picture.new_empty((frames, height, width), dtype=storage)
    u = picture.new_empty((frames, (height + 1) // 2, (width + 1) // 2), dtype=storage)
    v = torch.empty_like(u)
    if y.numel() == 0:
        return y, u, v
    if picture.stride(3) != 1:
        picture = picture.contiguous()
    group = 16 // picture.element_size()
    lengths = (width, *picture.stride()[:3])
    unit = gcd(group, *lengths)
    grid = (triton.cdiv(frames * triton.cdiv(width, group), BLOCK), triton.cdiv(height, 2))
    _rgb_to_yuv420_kernel[grid](
        picture, y, u, v, frames, height, *(length // unit for length in lengths), 2.0**bits - 1,
        *(weight for row in encoding for weight in row),
        GROUP=group, UNIT=unit, BLOCK=BLOCK, num_warps=BLOCK // 32,
    )  # fmt: skip
    return y, u, v
