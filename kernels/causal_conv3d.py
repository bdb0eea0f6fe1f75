"""Triton kernel for :func:`psssr_fast.ops.causal_conv3d`: an implicit GEMM.

A program computes the channels of a tile of pixels in one frame. It walks the taps and slices of
the input channels; for each it multiplies pixels, shifted by the tap, with weights. Nothing is
padded: the copy engine (or a mask) yields zero outside the picture, and taps that fall before the
clip are left out of the walk. ``kernels/_conv_tiles.py`` chooses the tile.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from psssr_fast.kernels._conv_tiles import (
    FRAME_GROUP,
    Problem,
    Tile,
    choose_tile,
    library_is_faster,
)
from psssr_fast.kernels._launch import architecture, launcher


@triton.jit
def _pixels(
    x, frame, row, col, k, height, width,
    CIN: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """``[BH * BW, BK]`` of a frame, zero outside the picture and beyond the channels."""
    if TMA:
        return x.load([frame, row, col, k]).reshape(BH * BW, BK)
    else:
        down, right = tl.arange(0, BH * BW) // BW, tl.arange(0, BH * BW) % BW
        h, w = row + down, col + right
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        c = tl.arange(0, BK)
        corner = (frame.to(tl.int64) * height + row) * width + col  # of a tap: can be negative
        offset = ((down * width + right) * CIN)[:, None] + c[None, :]
        mask = inside[:, None] & (k + c < CIN)[None, :]
        return tl.load(x + (corner * CIN + k) + offset, mask=mask, other=0.0)


@triton.jit
def _wrapped(slot, ring):
    """A slot of the ring, from one turn of it too low or too high."""
    slot = tl.where(slot < 0, slot + ring, slot)
    return tl.where(slot >= ring, slot - ring, slot)


@triton.jit
def _gathered(
    x, batch, ring, oldest, row, col, i, start, height, width, pad_h, pad_w,
    CIN: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """``[BH * BW, len(i)]``: elements ``i`` of the flattened taps and channels of each pixel."""
    tap = i // CIN
    dt, dh, dw = tap // (KH * KW), tap // KW % KH - pad_h, tap % KW - pad_w
    h = row + tl.arange(0, BH * BW)[:, None] // BW + dh[None, :]
    w = col + tl.arange(0, BH * BW)[:, None] % BW + dw[None, :]
    inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
    inside = inside & ((i >= start) & (i < KT * KH * KW * CIN))[None, :]
    frame = (batch * ring + _wrapped(oldest + dt, ring)).to(tl.int64)[None, :]
    offset = ((frame * height + h) * width + w) * CIN + (i % CIN)[None, :]
    return tl.load(x + offset, mask=inside, other=0.0)


@triton.jit
def _weights(
    weight, n, k, rows, DEPTH: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr
):
    """``[N, BK]``. Beyond the channels of a tap stand those of the next: pixels are zero there."""
    if TMA:
        return weight.load([n, k])
    else:
        r, c = n + tl.arange(0, N), k + tl.arange(0, BK)
        mask = (r < rows)[:, None] & (c < DEPTH)[None, :]
        return tl.load(weight + r[:, None] * DEPTH + c[None, :], mask=mask, other=0.0)


@triton.jit
def _dot(pixels, weights, acc, CHANNELS_FIRST: tl.constexpr):
    if CHANNELS_FIRST:
        return tl.dot(weights, pixels.T, acc, input_precision="ieee")
    else:
        return tl.dot(pixels, weights.T, acc, input_precision="ieee")


@triton.jit
def _offsets(pixel, inside, c, cout, CHANNELS_FIRST: tl.constexpr):
    """Offsets and mask of a block of channels, ``[pixels, N]`` or ``[N, pixels]``."""
    P: tl.constexpr = 0 if CHANNELS_FIRST else 1
    C: tl.constexpr = 1 - P
    c = tl.expand_dims(c, C)
    return tl.expand_dims(pixel, P) * cout + c, tl.expand_dims(inside, P) & (c < cout)


@triton.jit
def _initial(
    bias, residual, pixel, inside, c, cout, RESIDUAL: tl.constexpr, CHANNELS_FIRST: tl.constexpr
):
    """What the accumulator starts from. Read here, the residual is one wait for all of the tile."""
    C: tl.constexpr = 1 if CHANNELS_FIRST else 0
    acc = tl.expand_dims(tl.load(bias + c, mask=c < cout, other=0.0).to(tl.float32), C)
    offset, mask = _offsets(pixel, inside, c, cout, CHANNELS_FIRST)
    if RESIDUAL:
        return acc + tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        return acc + tl.zeros(mask.shape, tl.float32)


@triton.jit
def _rounded(acc, like, CHANNELS_FIRST: tl.constexpr):
    acc = acc.to(like.dtype.element_ty)
    return acc.T if CHANNELS_FIRST else acc


@triton.jit
def _stacked(
    accs, like, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, LINES: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
):  # fmt: skip
    """A block of all lines as one, rounded: so that one copy writes them and is waited for."""
    a = _rounded(accs[BLOCK], like, CHANNELS_FIRST)
    if LINES == 1:
        return a
    elif LINES == 2:
        b = _rounded(accs[BLOCK + BLOCKS], like, CHANNELS_FIRST)
        return tl.permute(tl.join(a, b), (2, 0, 1))
    else:
        tl.static_assert(LINES == 4)
        b = _rounded(accs[BLOCK + BLOCKS], like, CHANNELS_FIRST)
        c = _rounded(accs[BLOCK + 2 * BLOCKS], like, CHANNELS_FIRST)
        d = _rounded(accs[BLOCK + 3 * BLOCKS], like, CHANNELS_FIRST)
        return tl.permute(tl.join(tl.join(a, c), tl.join(b, d)), (2, 3, 0, 1))


@triton.jit
def _place(
    cout, width, height, pictures,
    N: tl.constexpr, PHASES: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """First channel, phase, column and row, and the frame, of this program.

    Programs that run together share pixels: the order is channels, phases, columns, then a group
    of frames, and rows last.
    """
    rest, tiles = tl.program_id(0), tl.cdiv(cout, N)
    channel, rest = rest % tiles * N, rest // tiles
    phase, rest = rest % PHASES, rest // PHASES
    tiles = tl.cdiv(width, COLS)
    col, rest = rest % tiles * COLS, rest // tiles
    tiles = tl.cdiv(height, ROWS)
    group = rest // (tiles * GROUP)
    rest = rest - group * (tiles * GROUP)
    size = tl.minimum(pictures - group * GROUP, GROUP)
    return channel, phase, col, rest // size * ROWS, group * GROUP + rest % size


@triton.jit(do_not_specialize=["height", "width", "ring", "first", "frames", "past", "pictures"])
def _implicit_gemm_kernel(
    x, w1, w2, bias, residual, out1, out2,
    height, width, ring, first, frames, past, pictures, cout,
    CIN: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SCALE: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, LINES: tl.constexpr, TAPS: tl.constexpr, BK: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, GROUP: tl.constexpr, RESIDUAL: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr, TMA: tl.constexpr, TMA_OUT: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    DEPTH: tl.constexpr = KT * KH * KW * CIN
    SLICES: tl.constexpr = (CIN + BK - 1) // BK
    STEPS: tl.constexpr = KH // TAPS * KW * SLICES  # in a frame
    BLOCKS: tl.constexpr = 2 if N2 > 0 else 1

    n0, phase, col, row, picture = _place(
        cout, width, height, pictures, N1 + N2, SCALE * SCALE, BW, BH * LINES, GROUP
    )
    py, px = phase // SCALE, phase % SCALE
    batch, t = picture // frames, picture % frames
    pad_h = KH // 2 if SCALE == 1 else 1 - py
    pad_w = KW // 2 if SCALE == 1 else 1 - px

    c1, c2 = n0 + tl.arange(0, N1), n0 + N1 + tl.arange(0, N2 if N2 > 0 else 1)
    down, right = tl.arange(0, BH * BW) // BW, tl.arange(0, BH * BW) % BW
    pixel = (picture.to(tl.int64) * height + row) * SCALE + py
    pixel = (pixel * width + col) * SCALE + px + (down * SCALE * width + right) * SCALE
    accs = ()
    for line in tl.static_range(LINES):
        at = pixel + line * SCALE * SCALE * width
        inside = (row + line + down < height) & (col + right < width)
        accs += (_initial(bias, residual, at, inside, c1, cout, RESIDUAL, CHANNELS_FIRST),)
        if N2 > 0:
            accs += (_initial(bias, residual, at, inside, c2, cout, RESIDUAL, CHANNELS_FIRST),)

    earliest = tl.maximum(KT - 1 - past - t, 0)  # tap that is not before the clip
    oldest = first + t - (KT - 1)
    begin = earliest * (KH * KW * CIN) // BK if FLAT else earliest * STEPS
    for step in range(begin, (DEPTH + BK - 1) // BK if FLAT else KT * STEPS):
        k = step * BK if FLAT else step % SLICES * BK
        dw, dh = step // SLICES % KW, step // (SLICES * KW) % (KH // TAPS)
        dt = step // STEPS
        pixels = ()
        if FLAT:
            i, start = k + tl.arange(0, BK), earliest * (KH * KW * CIN)
            pixels += (_gathered(x, batch, ring, oldest, row, col, i, start, height, width,
                                 pad_h, pad_w, CIN, KT, KH, KW, BH, BW),)  # fmt: skip
        else:
            frame = batch * ring + _wrapped(oldest + dt, ring)
            for line in tl.static_range(LINES + TAPS - 1):
                h, w = row + line + dh - pad_h, col + dw - pad_w
                pixels += (_pixels(x, frame, h, w, k, height, width, CIN, BH, BW, BK, TMA),)
        for tap in tl.static_range(TAPS):
            depth = k if FLAT else ((dt * KH + dh + tap) * KW + dw) * CIN + k
            rows, n = SCALE * SCALE * cout, phase * cout + n0
            block1 = _weights(w1, n, depth, rows, DEPTH, N1, BK, TMA)
            if N2 > 0:
                block2 = _weights(w2, n + N1, depth, rows, DEPTH, N2, BK, TMA)
            sums = ()
            for line in tl.static_range(LINES):
                sums += (_dot(pixels[line + tap], block1, accs[BLOCKS * line], CHANNELS_FIRST),)
                if N2 > 0:
                    acc = accs[BLOCKS * line + 1]
                    sums += (_dot(pixels[line + tap], block2, acc, CHANNELS_FIRST),)
            accs = sums

    if TMA_OUT:  # which drops what is outside
        n = px * cout + n0
        block = _stacked(accs, bias, 0, BLOCKS, LINES, CHANNELS_FIRST)
        out1.store([picture, row, py, col, n], block.reshape(1, BH * LINES, 1, BW, N1))
        if N2 > 0:
            block = _stacked(accs, bias, 1, BLOCKS, LINES, CHANNELS_FIRST)
            out2.store([picture, row, py, col, n + N1], block.reshape(1, BH * LINES, 1, BW, N2))
    else:
        for line in tl.static_range(LINES):
            at = pixel + line * SCALE * SCALE * width
            inside = (row + line + down < height) & (col + right < width)
            offset, mask = _offsets(at, inside, c1, cout, CHANNELS_FIRST)
            tl.store(out1 + offset, accs[BLOCKS * line], mask=mask)
            if N2 > 0:
                offset, mask = _offsets(at, inside, c2, cout, CHANNELS_FIRST)
                tl.store(out2 + offset, accs[BLOCKS * line + 1], mask=mask)


def implicit_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    frames: int,
    first: int = 0,
    past: int = 0,
    scale: int = 1,
    tile: Tile | None = None,
) -> Tensor:
    """Convolve, channels last and contiguous in memory; see the ops for the meaning.

    Args:
        x: ``[B, R, H, W, C]``.
        weight: ``[N, kt, kh, kw, C]``, or the four phases one after the other, ``[4 N, ...]``.
        bias: ``[N]``.
        residual: ``[B, frames, H, W, N]``.
        frames: of the output.
        first: slot of input frame 0.
        past: input frames before frame 0 that are in the ring.
        scale: 2 for the phases of an upsampling convolution.
        tile: instead of the one chosen here: for sweeps.

    Returns:
        ``[B, frames, scale * H, scale * W, N]``.
    """
    batch, ring, height, width, cin = x.shape
    cout, kernel = len(weight) // scale**2, tuple(weight.shape[1:4])
    tile = tile or choose_tile(Problem.of(x, kernel, cout, scale, architecture(x)))
    out = x.new_empty(batch, frames, scale * height, scale * width, cout)
    blocks = [n or tile.channels[0] for n in tile.channels]
    pixels, weights, outs = x, [weight, weight], [out, out]
    if tile.tma:
        box = [1, tile.rows, tile.cols, tile.depth]
        pixels = _descriptor(x, [batch * ring, height, width, cin], box)
        flat = [len(weight), weight[0].numel()]
        weights = [_descriptor(weight, flat, [n, tile.depth]) for n in blocks]
    if tile.tma_out:
        shape = [batch * frames, height, scale, width, scale * cout]
        box = [1, tile.rows * tile.lines, 1, tile.cols]
        outs = [_descriptor(out, shape, [*box, n]) for n in blocks]
    programs = batch * frames * scale**2 * triton.cdiv(cout, sum(tile.channels))
    programs *= triton.cdiv(width, tile.cols) * triton.cdiv(height, tile.rows * tile.lines)
    _implicit_gemm_kernel[(programs,)](
        pixels, *weights, bias, out if residual is None else residual, *outs,
        height, width, ring, first, frames, past, batch * frames, cout,
        CIN=cin, KT=kernel[0], KH=kernel[1], KW=kernel[2], SCALE=scale,
        BH=tile.rows, BW=tile.cols, LINES=tile.lines, TAPS=kernel[1] if tile.column else 1,
        BK=tile.depth, N1=tile.channels[0], N2=tile.channels[1], GROUP=FRAME_GROUP,
        RESIDUAL=residual is not None, CHANNELS_FIRST=tile.channels_first, TMA=tile.tma,
        TMA_OUT=tile.tma_out, FLAT=tile.flat, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _descriptor(tensor: Tensor, shape: list[int], box: list[int]) -> TensorDescriptor:
    """How the copy engine sees contiguous memory; strides of dimensions of size 1 made regular."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return TensorDescriptor(tensor, shape, strides, box)


def better_by_library(x: Tensor, weight: Tensor) -> bool:
    """Whether a library's convolution was measured to be faster than this kernel.

    Args:
        x: ring, ``[B, C, R, H, W]``.
        weight: ``[N, C, kt, kh, kw]``.
    """
    kernel = weight.shape[2], weight.shape[3], weight.shape[4]
    last = x.permute(0, 2, 3, 4, 1)
    return library_is_faster(Problem.of(last, kernel, len(weight), 1, architecture(x)))


@launcher
def causal_conv3d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    first: int,
    frames: int,
    past: int,
    tile: Tile | None = None,
) -> Tensor:
    return implicit_gemm(
        x.permute(0, 2, 3, 4, 1).contiguous(),
        weight.permute(0, 2, 3, 4, 1).contiguous(),  # nothing to do where weights are packed
        bias,
        None if residual is None else residual.permute(0, 2, 3, 4, 1).contiguous(),
        frames=frames,
        first=first % x.shape[2],
        past=past,
        tile=tile,
    ).permute(0, 4, 1, 2, 3)
