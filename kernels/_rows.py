"""What the kernels that work on rows of channels share: how to cut a row, load it, refuse it.

Triton's tiles are powers of two, and Wan's 1536 channels are not: a tile of 2048 would idle a
quarter of the lanes. A row is therefore a tuple of equal tiles, each 16 bytes for every lane of
one warp: six of 256 channels in bf16. One warp holds a whole row, so that sums need no shared
memory and no barrier, and all loads of a row are in flight before the first is used.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.errors import UsageError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
WARPS = 4  # of a program
THREADS = 32 * WARPS
VECTOR = 16  # bytes of a thread's widest access
FEW_VALUES, MANY_VALUES = 32, 64  # of a row or rows in the registers of a thread


@dataclass(frozen=True)
class RowTiles:
    """How a program holds rows: ``rows`` of them, each cut into tiles of ``block`` channels."""

    rows: int
    block: int


def row_tiles(dim: int, dtype: torch.dtype) -> RowTiles:
    """One row a warp; several when rows are short, all warps on one when it is long."""
    lane = VECTOR // dtype.itemsize
    if dim > 32 * MANY_VALUES:
        return RowTiles(1, THREADS * lane)
    block = min(32 * lane, triton.next_power_of_2(dim))
    wanted = max(THREADS * FEW_VALUES // (triton.cdiv(dim, block) * block), WARPS)
    return RowTiles(min(triton.next_power_of_2(wanted), 64), block)


@triton.jit
def load_row(row_ptr, inside, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Tiles of the rows that begin at ``row_ptr`` ``[rows, 1]``; zeros where not ``inside``."""
    tiles = ()
    for start in tl.static_range(0, DIM, BLOCK):
        col = start + tl.arange(0, BLOCK)[None, :]
        mask = inside
        if DIM % BLOCK != 0:
            mask = inside & (col < DIM)
        tiles += (tl.load(row_ptr + col, mask=mask, other=0.0),)
    return tiles


def dense_channels(x: Tensor) -> Tensor:
    """``x`` itself if its channels are adjacent (rows may be apart), or a copy where they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def require_float(op: str, name: str, tensor: Tensor, rank: int | None = None) -> None:
    """Refuse a tensor of a dtype or rank that the kernels of ``op`` do not read."""
    if tensor.dtype not in FLOATS or rank not in (None, tensor.ndim):
        needed = "" if rank is None else f"{rank} dimensions of "
        raise UsageError(
            f"{op}: {name} is {_describe(tensor)}; needed is {needed}float16, bfloat16 or "
            "float32: cast or reshape it"
        )


def require(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse an operand that differs from ``shape``, or from ``like`` in dtype or device."""
    if tuple(tensor.shape) != shape or (tensor.dtype, tensor.device) != (like.dtype, like.device):
        raise UsageError(
            f"{op}: {name} is {_describe(tensor)}; needed is {list(shape)} of {like.dtype} on "
            f"{like.device}, to go with the first operand: reshape, cast or move it"
        )


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
