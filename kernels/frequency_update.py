"""Triton kernel for :func:`psssr_fast.ops.frequency_update`: one launch for all of it.

A program walks down a strip of 64 columns, 32 rows a step, with one warp for 32 columns of one
picture. The 19x19 low-pass of rank 4 is four pairs of banded 32x64 Toeplitz matrices, which tensor
cores multiply: 64 + 64 multiplications a pixel and term, where dense 128x128 tiles would take 400.
A step filters its rows along x, then adds them along y to the sums of the 32 rows above, which
that completes, and to those of the 32 below, which the next step completes. So only those sums
live from step to step, and no filtered line is stored or computed twice.

Counted in the SASS for sm_90, bf16: 118 instructions a pixel, 37 of them for the filter, so 0.9
cycles a pixel to issue them, and 0.5 of tensor cores at their peak; an H100's memory takes 1.4.
Memory should bound it, then, if three programs a multiprocessor hide each other's latency.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.kernels._launch import launcher

TERMS = 4  # rank of the low-pass
TAPS = 19
STRIP = tl.constexpr(64)  # columns of a program
STEP = tl.constexpr(32)  # rows of a step, columns of a warp
HALO = tl.constexpr(16)  # at least 9, the reach of the filter, and whole 128-bit words
SCALE = 16.0  # of the taps: their low halves would else be too small for fp16
PROGRAMS = 1536  # wanted: a few for each place on a GPU
Taps = tuple[tuple[float, ...], ...]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.uint8)


@triton.jit
def _planes(ptr, plane, mask):
    """Red, green and blue of the pixels at ``ptr``, in fp32."""
    red = tl.load(ptr, mask=mask).to(tl.float32)
    green = tl.load(ptr + plane, mask=mask).to(tl.float32)
    blue = tl.load(ptr + plane + plane, mask=mask).to(tl.float32)
    return red, green, blue


@triton.jit
def _luma(red, green, blue, middle):
    return (0.299 * red - middle) + 0.587 * green + 0.114 * blue


@triton.jit
def _load_luma(ptr, plane, mask, middle):
    red, green, blue = _planes(ptr, plane, mask)
    return _luma(red, green, blue, middle)


@triton.jit
def _pick(values, chosen):
    """The value of each line at the one column chosen; 0 where there is none."""
    return tl.sum(tl.where(chosen, values, 0.0), 2, keep_dims=True)


@triton.jit
def _pair(left, right):
    """Two blocks of columns of both pictures, as four matrices ``[column, row]``."""
    side = tl.arange(0, 2).reshape(1, 2, 1, 1)
    both = tl.where(side == 0, left.reshape(2, 1, 32, 32), right.reshape(2, 1, 32, 32))
    return tl.permute(both.reshape(4, 32, 32), (0, 2, 1))


@triton.jit
def _windows(lines, plane, x, width, MIDDLE: tl.constexpr, EDGE: tl.constexpr):
    """Luma of columns x to x + 96 of both pictures: what each warp filters, as fp16 high and low.

    ``lines`` points at column 0 of each row, ``[2, 32, 1]``. At an ``EDGE`` of the picture the last
    column inside is repeated outside.
    """
    k = tl.arange(0, 32)[None, None, :]
    start = lines + (x + k)
    if EDGE:
        before = (k < HALO) & (x < 0)
        end = width - x
        a = _load_luma(start, plane, (k < end) & ~before, MIDDLE)
        b = _load_luma(start + 32, plane, k < end - 32, MIDDLE)
        c = _load_luma(start + 64, plane, k < end - 64, MIDDLE)
        last = _pick(a, k == end - 1) + _pick(b, k == end - 33) + _pick(c, k == end - 65)
        a = tl.where(before, _pick(a, k == HALO), tl.where(k < end, a, last))
        b = tl.where(k < end - 32, b, last)
        c = tl.where(k < end - 64, c, last)
    else:
        a = _load_luma(start, plane, None, MIDDLE)
        b = _load_luma(start + 32, plane, None, MIDDLE)
        c = _load_luma(start + 64, plane, None, MIDDLE)
    a_high, b_high, c_high = a.to(tl.float16), b.to(tl.float16), c.to(tl.float16)
    a_low = (a - a_high.to(tl.float32)).to(tl.float16)
    b_low = (b - b_high.to(tl.float32)).to(tl.float16)
    c_low = (c - c_high.to(tl.float32)).to(tl.float16)
    return _pair(a_high, b_high), _pair(b_high, c_high), _pair(a_low, b_low), _pair(b_low, c_low)


@triton.jit
def _band(ptr, index):
    """The banded matrix ``index`` of the table, for each of the four warps."""
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    return tl.broadcast_to(tl.load(ptr + index * 1024 + at)[None], (4, 32, 32))


@triton.jit
def _dot_left(ptr, index, high, low, total, SPLIT: tl.constexpr):
    """``total + band @ (high + low)``, where the band, too, has a low half, if ``SPLIT``."""
    band = _band(ptr, index)
    total = tl.dot(band, high, total)
    if SPLIT:
        total = tl.dot(band, low, total)
        total = tl.dot(_band(ptr, 16 + index), high, total)
    return total


@triton.jit
def _dot_right(ptr, index, high, low, total, SPLIT: tl.constexpr):
    """``total + (high + low) @ band``, likewise."""
    band = _band(ptr, index)
    total = tl.dot(high, band, total)
    if SPLIT:
        total = tl.dot(low, band, total)
        total = tl.dot(high, _band(ptr, 16 + index), total)
    return total


@triton.jit
def _filter(windows, bands_ptr, done, SPLIT: tl.constexpr):
    """Add 32 rows to the sums ``[4, column, row]`` of those above, and begin those below."""
    left, right, left_low, right_low = windows
    begun = tl.zeros_like(done)
    for _ in tl.range(0, 4, num_stages=1):
        along_x = _dot_left(bands_ptr, 0, left, left_low, tl.zeros_like(done), SPLIT)
        along_x = _dot_left(bands_ptr, 1, right, right_low, along_x, SPLIT)
        high = along_x.to(tl.float16)
        low = (along_x - high.to(tl.float32)).to(tl.float16)
        done = _dot_right(bands_ptr, 2, high, low, done, SPLIT)
        begun = _dot_right(bands_ptr, 3, high, low, begun, SPLIT)
        bands_ptr += 4096
    return done, begun


@triton.jit
def _change(high, high_sharp, strength, eps, LITERAL: tl.constexpr):
    """``Y' - Y`` from the high frequencies of both pictures."""
    size = tl.abs(high_sharp)
    towards = size / (size + tl.abs(high) + eps) * (high_sharp - high)
    if LITERAL:
        return strength * (high + towards) - high
    return strength * towards


@triton.jit
def _store(ptr, value, mask, TOP: tl.constexpr):
    """Store what lies in [0, TOP], as a byte if TOP is 255, rounded to nearest."""
    if TOP == 255.0:
        value = (value + 12582912.0).to(tl.int32, bitcast=True)  # 1.5 * 2**23: fraction gone
    tl.store(ptr, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _frequency_update_kernel(
    consistent_ptr,
    sharp_ptr,
    bands_ptr,
    fused_ptr,
    detail_ptr,
    height,
    width,
    c_frame,
    c_plane,
    c_row,
    s_frame,
    s_plane,
    s_row,
    out_plane,
    steps,
    border,
    strength,
    eps,
    gain,
    LITERAL: tl.constexpr,
    BORDER: tl.constexpr,
    DETAIL: tl.constexpr,
    SPLIT: tl.constexpr,
    TOP: tl.constexpr,
):
    MIDDLE: tl.constexpr = TOP / 2  # taken from luma, fp16 resolves twice as much of the rest
    strips = tl.cdiv(width, STRIP)
    frame = (tl.program_id(0) // strips).to(tl.int64)  # int64: clips can pass 2**31 elements
    consistent_ptr += frame * c_frame
    sharp_ptr += frame * s_frame
    fused_ptr += frame * 3 * out_plane
    detail_ptr += frame * out_plane
    x = tl.program_id(0) % strips * STRIP
    top = tl.program_id(1) * steps * STEP
    steps = tl.minimum(steps, tl.cdiv(height - top, STEP))
    at_edge = (x == 0) | (x + STRIP + HALO > width)
    picture = tl.arange(0, 2)[:, None, None]
    both = tl.where(picture == 0, consistent_ptr, sharp_ptr)
    plane = tl.where(picture == 0, c_plane, s_plane)
    stride = tl.where(picture == 0, c_row, s_row).to(tl.int64)
    y = tl.arange(0, STEP)
    begun = tl.zeros([4, 32, 32], tl.float32)
    # The first step only begins. Nothing is hoisted out of the loop: registers are scarce.
    for at in tl.range(top - HALO, top + steps * STEP, STEP, num_stages=1, disable_licm=True):
        row = tl.minimum(tl.maximum(at + y, 0), height - 1)
        lines = both + row[None, :, None] * stride
        if at_edge:
            windows = _windows(lines, plane, x - HALO, width, MIDDLE, True)
        else:
            windows = _windows(lines, plane, x - HALO, width, MIDDLE, False)
        done, begun = _filter(windows, bands_ptr, begun, SPLIT)
        if at >= top:
            low, low_sharp = tl.split(tl.permute(done.reshape(2, 2, 32, 32), (3, 1, 2, 0)))
            column = x + tl.arange(0, STRIP)[None, :]
            line = (at + y - HALO).to(tl.int64)[:, None]
            mask = (line < height) & (column < width)
            red, green, blue = _planes(consistent_ptr + (line * c_row + column), c_plane, mask)
            high = _luma(red, green, blue, MIDDLE) - gain * low.reshape(STEP, STRIP)
            high_sharp = _load_luma(sharp_ptr + (line * s_row + column), s_plane, mask, MIDDLE)
            high_sharp -= gain * low_sharp.reshape(STEP, STRIP)
            change = _change(high, high_sharp, strength, eps, LITERAL)
            if BORDER:
                inside = (line >= border) & (line < height - border)
                inside &= (column >= border) & (column < width - border)
                change = tl.where(inside, change, 0.0)
            to = line * width + column
            red = tl.clamp(red + change, 0.0, TOP, tl.PropagateNan.ALL)
            green = tl.clamp(green + change, 0.0, TOP, tl.PropagateNan.ALL)
            blue = tl.clamp(blue + change, 0.0, TOP, tl.PropagateNan.ALL)
            _store(fused_ptr + to, red, mask, TOP)
            _store(fused_ptr + out_plane + to, green, mask, TOP)
            _store(fused_ptr + out_plane + out_plane + to, blue, mask, TOP)
            if DETAIL:
                change = tl.abs(change)
                if TOP == 255.0:
                    change = tl.minimum(change, TOP)
                _store(detail_ptr + to, change, mask, TOP)


def _toeplitz(taps: Tensor) -> Tensor:
    """fp64 ``[32, 64]``: from each of 32 values to those at most 9 away, 16 to the left of all."""
    index = torch.arange(64) - torch.arange(32)[:, None] - HALO.value + TAPS // 2
    return torch.where((index >= 0) & (index < TAPS), taps[index.clamp(0, TAPS - 1)], 0.0)


@lru_cache(maxsize=16)
def _bands(columns: Taps, rows: Taps, split: bool, device: torch.device) -> tuple[Tensor, float]:
    """The matrices that the kernel multiplies with, and the scale of what comes out.

    Returns:
        fp16 ``[high and low half, term, 4, 32, 32]``, the four being the left and right half of
        the matrix along x, then of that along y; without ``split`` high halves only. And the
        factor that makes the taps, as rounded, sum to 1.
    """
    matrices, halves = [], 1 + split
    for column, row in zip(columns, rows, strict=True):
        along_x, along_y = torch.tensor([row, column], dtype=torch.float64)
        balance = (along_x.abs().max() / along_y.abs().max()).sqrt()
        for taps in (along_x / balance, along_y * balance):
            matrices += _toeplitz(SCALE * taps).split(32, dim=1)
    exact = torch.stack(matrices).view(TERMS, 4, 32, 32)
    high = exact.half()
    table = torch.stack([high, (exact - high).half()])[:halves]
    sums = table.double().sum(0)[:, :, 0].sum(-1).view(TERMS, 2, 2).sum(-1)  # of each term's taps
    return table.to(device), 1 / sums.prod(-1).sum().item()


def _steps(frames: int, height: int, width: int) -> int:
    """Steps of a program: a long walk, for each repeats 32 rows, but enough walks for a GPU."""
    strips, steps = frames * triton.cdiv(width, STRIP.value), triton.cdiv(height, STEP.value)
    walks = triton.cdiv(steps, max(2, triton.cdiv(strips * steps, PROGRAMS)))
    return triton.cdiv(steps, walks)


def _registers(consistent: Tensor, sharp: Tensor) -> int | None:
    """Most registers of a thread, where three programs then fit on a multiprocessor.

    They do not where fp32 takes twice as many or where a line does not begin at a whole word, so
    that pixels are read one by one.
    """
    numbers = [consistent.shape[3], *consistent.stride()[:3], *sharp.stride()[:3]]
    numbers += [consistent.data_ptr(), sharp.data_ptr()]
    words = all(number % 16 == 0 for number in numbers)
    return 152 if words and consistent.dtype != torch.float32 else None


def _check(consistent: Tensor, sharp: Tensor) -> None:
    for name, picture in (("consistent", consistent), ("sharp", sharp)):
        planes = picture.dim() == 4 and picture.shape[1] == 3 and picture.numel() > 0
        if picture.dtype not in DTYPES or not planes:
            raise UsageError(
                f"frequency_update: {name} must be float16, bfloat16, float32 or uint8 "
                f"[T, 3, H, W], not empty; got {picture.dtype} {list(picture.shape)}; "
                "frequency_update_ref takes other dtypes"
            )
    if consistent.shape != sharp.shape or consistent.dtype != sharp.dtype:
        raise UsageError(
            "frequency_update: both pictures need one shape and dtype; got consistent "
            f"{consistent.dtype} {list(consistent.shape)} and sharp {sharp.dtype} "
            f"{list(sharp.shape)}; convert one of them"
        )


@launcher
def frequency_update_triton(
    consistent: Tensor,
    sharp: Tensor,
    columns: Tensor,
    rows: Tensor,
    *,
    strength: float,
    literal: bool,
    border: int,
    eps: float,
    detail: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel.

    Args:
        consistent, sharp: as the op takes them; copied where a line is not contiguous.
        columns, rows: the low-pass, on the CPU, fp64 ``[4, 19]`` each, symmetric.
        strength, literal, border, eps: as the op takes them.
        detail: also compute ``|Y' - Y|``.

    Returns:
        The picture, and the detail ``[T, H, W]``, empty if not asked for.

    Raises:
        UsageError: wrong shapes or dtypes.
    """
    _check(consistent, sharp)
    consistent, sharp = (x if x.stride(3) == 1 else x.contiguous() for x in (consistent, sharp))
    frames, _, height, width = consistent.shape
    split, levels = consistent.dtype == torch.float32, consistent.dtype == torch.uint8
    taps = (tuple(map(tuple, terms.tolist())) for terms in (columns, rows))
    bands, gain = _bands(*taps, split, consistent.device)
    fused = torch.empty_like(consistent, memory_format=torch.contiguous_format)
    change = fused.new_empty((frames, height, width) if detail else 0)
    steps = _steps(frames, height, width)
    strips, walks = triton.cdiv(width, STRIP.value), triton.cdiv(height, steps * STEP.value)
    _frequency_update_kernel[frames * strips, walks](
        consistent,
        sharp,
        bands,
        fused,
        change,
        height,
        width,
        *consistent.stride()[:3],
        *sharp.stride()[:3],
        height * width,
        steps,
        border,
        strength,
        255 * eps if levels else eps,
        gain,
        LITERAL=literal,
        BORDER=border > 0,
        DETAIL=detail,
        SPLIT=split,
        TOP=255.0 if levels else 1.0,
        num_warps=4,
        maxnreg=_registers(consistent, sharp),
    )
    return fused, change
