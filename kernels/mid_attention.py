"""Triton kernel for :func:`psssr_fast.ops.mid_attention`.

One program holds a block of queries and walks over the keys of its frame with an online softmax.
What is peculiar is the width: 384 is not a power of two, so queries, keys, values and the fp32
accumulator come in pieces of WIDTH channels, the last of which may reach past DIM (zeros there).

Expected at DIM 384 on sm_90 (128 queries and 32 keys a step, two warp groups): a step is 1536
clocks of wgmma, but 1920 of shared memory (queries are read anew for every 32 keys) and about as
many of L2 (48 KiB), plus what the groups do not hide for each other of softmax and of the next
load, of which only one fits: half to 60 % of the tensor cores' rate. On sm_80 a step of 16 keys is
768 clocks of mma and 1350 of shared memory; two programs on a multiprocessor hide each other's
loads: half the rate.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from psssr_fast.errors import UsageError
from psssr_fast.kernels._launch import architecture, launcher

WIDEST = 384  # of Wan's layers; at 512 the accumulator alone would fill Blackwell's tensor memory


class _Blocks(NamedTuple):
    """Sizes of a launch; the accumulator, queries x channels in fp32, decides the warps."""

    queries: int
    keys: int
    width: int  # channels of a piece
    warps: int


def _blocks(arch: int, dim: int) -> _Blocks:
    """The largest blocks that spill nothing (``tests/cubins/mid_attention.py``) and fit.

    72 KiB of shared memory without wgmma (sm_86, sm_89 and sm_120 have 99), 192 with it.
    """
    blocks = _Blocks(128, 32, 128, 8) if _has_wgmma(arch) else _Blocks(64, 16, 64, 4)
    return blocks._replace(width=min(blocks.width, triton.next_power_of_2(dim)))


def _has_wgmma(arch: int) -> bool:
    """Whether operands come from shared memory: wgmma of sm_90, tcgen05 of sm_100."""
    return 90 <= arch < 120


@triton.jit
def _load(
    source, frame, row, column, stride, tokens,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows of a frame, one piece of their channels; zeros past the frame's end and past DIM."""
    if TMA:
        return source.load([frame, row, column]).reshape(ROWS, WIDTH)
    else:
        rows = tl.arange(0, ROWS)[:, None]
        columns = tl.arange(0, WIDTH)[None, :]
        inside = rows < tokens - row
        if DIM % WIDTH != 0:
            inside &= columns < DIM - column
        # Added to the address of the row, the column becomes an immediate of the load: one
        # register pair serves all pieces.
        start = source + row * stride.to(tl.int64) + column
        return tl.load(start + (rows * stride + columns), mask=inside, other=0.0)


@triton.jit
def _mid_attention_kernel(
    q, k, v, out_ptr,
    q_frame, q_token, k_frame, k_token, v_frame, v_token,
    tokens, tiles, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Attention of QUERIES tokens of one frame; ``scale`` includes log2(e)."""
    PIECES: tl.constexpr = (DIM + WIDTH - 1) // WIDTH
    # Neighbours share a frame, hence keys and values in L2.
    frame = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * QUERIES
    if not TMA:
        q += frame.to(tl.int64) * q_frame
        k += frame.to(tl.int64) * k_frame
        v += frame.to(tl.int64) * v_frame

    queries = ()
    mixed = ()
    for i in tl.static_range(PIECES):
        q_piece = _load(q, frame, row, i * WIDTH, q_token, tokens, QUERIES, WIDTH, DIM, TMA)
        queries += (q_piece,)
        mixed += (tl.zeros([QUERIES, WIDTH], tl.float32),)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)

    for start in tl.range(0, tokens, KEYS, num_stages=2):
        scores = tl.zeros([QUERIES, KEYS], tl.float32)
        for i in tl.static_range(PIECES):
            k_piece = _load(k, frame, start, i * WIDTH, k_token, tokens, KEYS, WIDTH, DIM, TMA)
            scores = tl.dot(queries[i], k_piece.T, scores)
        inside = tl.arange(0, KEYS)[None, :] < tokens - start
        scores = tl.where(inside, scores * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        top = higher
        weights = weights.to(out_ptr.dtype.element_ty)
        further = ()
        for i in tl.static_range(PIECES):
            v_piece = _load(v, frame, start, i * WIDTH, v_token, tokens, KEYS, WIDTH, DIM, TMA)
            further += (tl.dot(weights, v_piece, mixed[i] * shrink[:, None]),)
        mixed = further

    rows = tl.arange(0, QUERIES)[:, None]
    out_ptr += (frame.to(tl.int64) * tokens + row) * DIM
    for i in tl.static_range(PIECES):
        columns = i * WIDTH + tl.arange(0, WIDTH)[None, :]
        inside = (rows < tokens - row) & (columns < DIM)
        tl.store(out_ptr + rows * DIM + columns, mixed[i] / total[:, None], mask=inside)


def _aligned(x: Tensor) -> Tensor:
    """``x`` with rows that 16-byte loads and descriptors can address, copied if they are not."""
    strides = x.stride()
    fits = strides[2] == 1 and all(stride > 0 and stride % 8 == 0 for stride in strides[:2])
    return x if fits and x.data_ptr() % 16 == 0 else x.contiguous()


def supports(q: Tensor) -> bool:
    """Whether the kernel takes these queries: fp16 or bf16, ``dim`` a multiple of 16 up to 384."""
    dim = q.shape[-1]
    return q.dtype in (torch.float16, torch.bfloat16) and dim % 16 == 0 and 16 <= dim <= WIDEST


@launcher
def mid_attention_triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within each frame, ``[frames, tokens, dim]``; see the op for the contract.

    Raises:
        UsageError: the dtype is not fp16 or bf16, or ``dim`` not a multiple of 16 up to 384.
    """
    frames, tokens, dim = q.shape
    if not supports(q):
        raise UsageError(
            f"mid_attention: got {q.dtype} with dim {dim}; the kernel needs float16 or bfloat16 "
            f"and a multiple of 16 up to {WIDEST}; use F.scaled_dot_product_attention"
        )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not out.numel():
        return out
    arch = architecture(q)
    blocks = _blocks(arch, dim)
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    sources: tuple[Tensor | TensorDescriptor, ...] = (q, k, v)
    if _has_wgmma(arch):
        rows = (blocks.queries, blocks.keys, blocks.keys)
        sources = tuple(
            TensorDescriptor.from_tensor(x, [1, count, blocks.width])
            for x, count in zip((q, k, v), rows, strict=True)
        )
    tiles = triton.cdiv(tokens, blocks.queries)
    _mid_attention_kernel[(frames * tiles,)](
        *sources,
        out,
        *strides,
        tokens,
        tiles,
        dim**-0.5 * math.log2(math.e),
        DIM=dim,
        WIDTH=blocks.width,
        QUERIES=blocks.queries,
        KEYS=blocks.keys,
        TMA=_has_wgmma(arch),
        num_warps=blocks.warps,
    )
    return out
