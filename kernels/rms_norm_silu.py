"""Triton kernel for :func:`psssr_fast.ops.rms_norm_silu` and its form that writes into a ring.

Memory-bound by intent: each thread loads three (a power of two of channels: two) 128-bit vectors of
one pixel, and a pixel lies within one warp, so the norm takes shuffles only. 40 registers let a
multiprocessor keep some 70 KiB of loads in flight. About 16 instructions an element, two of them
on the special function unit, would allow 7 TB/s on an H100.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.kernels._launch import launcher

WARPS = 8
BYTES = 48  # of input a thread


@triton.jit(do_not_specialize=["first"])
def _rms_norm_silu_kernel(
    x_ptr, gamma_ptr, out_ptr,
    pixels, slots, first, root,
    CHANNELS: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """Frames of ``pixels`` x CHANNELS, read in order, written from slot ``first`` of ``slots`` on.

    PIECES x WIDTH covers the channels; grid: blocks of PIXELS, frames, batch.
    """
    frame = tl.program_id(1)
    slot = first + frame
    slot = tl.where(slot < slots, slot, slot - slots)
    batch = tl.program_id(2).to(tl.int64)  # int64: the products below can pass 2**31
    start = tl.program_id(0) * PIXELS
    x_ptr += ((batch * tl.num_programs(1) + frame) * pixels + start) * CHANNELS
    out_ptr += ((batch * slots + slot) * pixels + start) * CHANNELS

    pixel = tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = pixel < pixels - start
    known = True
    if PIECES * WIDTH > CHANNELS:
        known = channel < CHANNELS
        inside &= known
    at = pixel * CHANNELS + channel

    pieces = ()
    squares = tl.zeros([PIXELS, WIDTH], tl.float32)
    for i in tl.static_range(PIECES):
        piece = tl.load(x_ptr + at + i * WIDTH, mask=inside, other=0.0).to(tl.float32)
        squares += piece * piece
        pieces += (piece,)
    # 1 / max(|x|, 1e-12), and a pixel with a NaN is NaN throughout, as in the reference.
    square = tl.maximum(tl.sum(squares, 1), 1e-24, propagate_nan=tl.PropagateNan.ALL)
    inverse = (root * tl.rsqrt(square))[:, None]
    for i in tl.static_range(PIECES):
        gamma = tl.load(gamma_ptr + channel + i * WIDTH, mask=known).to(tl.float32)
        y = pieces[i] * inverse * gamma
        if SILU:
            # rsqrt twice is 1 / (1 + exp(-y)) without the range checks of a division.
            sigmoid_root = tl.rsqrt(1 + tl.exp2(y * -1.4426950408889634))
            y = y * sigmoid_root * sigmoid_root
        tl.store(out_ptr + at + i * WIDTH, y, mask=inside)


def _pieces(channels: int) -> tuple[int, int]:
    """How many pieces of which power of two hold the channels, without waste if possible.

    96, 192 and 384 are three pieces of 32, 64 and 128.
    """
    width = channels & -channels
    pieces = channels // width
    return (pieces, width) if width >= 8 and pieces <= 7 else (1, triton.next_power_of_2(channels))


def _launch(x: Tensor, gamma: Tensor, out: Tensor, first: int, silu: bool) -> None:
    """Write frame ``t`` of ``x`` to frame ``(first + t) % out.shape[2]`` of ``out``."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise UsageError(
            f"rms_norm_silu: got {x.dtype}; the kernel needs float16, bfloat16 or float32; "
            "convert x, or use rms_norm_silu_ref"
        )
    batch, channels, frames, height, width = x.shape
    if not x.numel():
        return
    x = x.contiguous(memory_format=torch.channels_last_3d)
    pieces, piece_width = _pieces(channels)
    count = 32 * WARPS * BYTES // (pieces * piece_width * x.element_size())
    block = 1 << max(count.bit_length() - 1, 0)
    slots = out.shape[2]
    _rms_norm_silu_kernel[(triton.cdiv(height * width, block), frames, batch)](
        x,
        gamma.contiguous(),
        out,
        height * width,
        slots,
        first % slots,
        channels**0.5,
        CHANNELS=channels,
        PIECES=pieces,
        WIDTH=piece_width,
        PIXELS=block,
        SILU=silu,
        num_warps=WARPS,
    )


@launcher
def rms_norm_silu_triton(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.channels_last_3d)
    _launch(x, gamma, out, 0, silu)
    return out


@launcher
def rms_norm_silu_into_triton(
    x: Tensor, gamma: Tensor, ring: Tensor, first: int, silu: bool
) -> None:
    _launch(x, gamma, ring, first, silu)
