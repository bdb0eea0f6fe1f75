"""Triton kernels for :func:`psssr_fast.ops.feature_project`."""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from psssr_fast.kernels._launch import architecture, launcher
from psssr_fast.kernels._rows import VECTOR, require, require_float

INTERPRETED_PROCESSORS = 2


@dataclass(frozen=True)
class Tiles:
    """Launch configuration: tokens, outputs and inputs of a tile, depth of the pipeline, warps."""

    m: int
    n: int
    k: int
    stages: int
    warps: int


WIDE = Tiles(128, 256, 64, 4, 8)  # wgmma m64n256; 4 x 48 KiB of operands + 32 KiB of output
NARROW = Tiles(128, 128, 64, 4, 8)
AMPERE = Tiles(128, 128, 32, 4, 4)  # two programs a processor: one computes, one loads or stores
FP32 = Tiles(64, 64, 16, 3, 4)  # no tensor cores: eager does not round to tf32 either


@triton.jit
def _descriptor_kernel(
    h_desc, weight_desc, cached_ptr, out_desc, tokens,
    DIM: tl.constexpr, OUT_DIM: tl.constexpr, PROGRAMS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One program a processor takes tile after tile; operands and output go by descriptor.

    Bound by the tensor cores. Neighbouring programs work on the same tokens, so that those, and
    the weight, which is small, are read from memory once and then from the L2 cache.
    """
    columns: tl.constexpr = (OUT_DIM + N - 1) // N
    half: tl.constexpr = N // 2
    for tile in range(tl.program_id(0), tl.cdiv(tokens, M) * columns, PROGRAMS):
        row = tile // columns * M
        col = tile % columns * N
        # What is to be added arrives while the product is computed. Two halves, as the output:
        # a whole tile of it would not fit into shared memory beside the operands.
        rows = row + tl.arange(0, M)[:, None]
        cols = col + tl.arange(0, half)[None, :]
        cached_ptrs = cached_ptr + rows.to(tl.int64) * OUT_DIM + cols
        left_inside = rows < tokens
        right_inside = left_inside
        if OUT_DIM % N != 0:
            left_inside = left_inside & (cols < OUT_DIM)
            right_inside = right_inside & (cols + half < OUT_DIM)
        left_cached = tl.load(cached_ptrs, mask=left_inside)
        right_cached = tl.load(cached_ptrs + half, mask=right_inside)

        total = tl.zeros([M, N], tl.float32)
        for k in range(0, DIM, K):  # beyond an edge, descriptors read zeros
            h = h_desc.load([row, k])
            weight = weight_desc.load([col, k])
            total = tl.dot(h, weight.T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, [M, 2, half]), [0, 2, 1]))
        left += left_cached.to(tl.float32)
        out_desc.store([row, col], left.to(out_desc.dtype))
        right += right_cached.to(tl.float32)
        out_desc.store([row, col + half], right.to(out_desc.dtype))


@triton.jit
def _pointer_kernel(
    h_ptr, weight_ptr, cached_ptr, out_ptr, tokens, weight_stride,
    DIM: tl.constexpr, OUT_DIM: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One tile a program, neighbours on the same tokens; for operands of any alignment."""
    columns: tl.constexpr = (OUT_DIM + N - 1) // N
    row = (tl.program_id(0) // columns * M).to(tl.int64) + tl.arange(0, M)
    col = tl.program_id(0) % columns * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    # Tokens and outputs beyond the edge are computed from real ones, and not stored.
    h_ptrs = h_ptr + tl.minimum(row, tokens - 1)[:, None] * DIM + inner[None, :]
    weight_ptrs = weight_ptr + (col % OUT_DIM).to(tl.int64)[None, :] * weight_stride
    weight_ptrs += inner[:, None]
    total = tl.zeros([M, N], tl.float32)
    for k in range(0, DIM, K):
        if DIM % K == 0:
            h = tl.load(h_ptrs + k)
            weight = tl.load(weight_ptrs + k)
        else:
            h = tl.load(h_ptrs + k, mask=inner[None, :] < DIM - k, other=0.0)
            weight = tl.load(weight_ptrs + k, mask=inner[:, None] < DIM - k, other=0.0)
        total = tl.dot(h, weight, total, input_precision="ieee")
    offset = row[:, None] * OUT_DIM + col[None, :]
    inside = (row < tokens)[:, None] & (col < OUT_DIM)[None, :]
    total += tl.load(cached_ptr + offset, mask=inside).to(tl.float32)
    tl.store(out_ptr + offset, total.to(out_ptr.dtype.element_ty), mask=inside)


@cache
def _processors(device: int) -> int:
    utils = triton.runtime.driver.active.utils
    count: int = utils.get_device_properties(device)["multiprocessor_count"]
    return count


def _programs(tensor: Tensor) -> int:
    if triton.knobs.runtime.interpret and not tensor.is_cuda:
        return INTERPRETED_PROCESSORS
    return _processors(triton.runtime.driver.active.get_current_device())


def _fetchable(matrix: Tensor) -> bool:
    """Whether the copy engine can read or write this matrix: it counts in units of 16 bytes."""
    step = matrix.stride(0) * matrix.element_size()
    return matrix.stride(1) == 1 and step % VECTOR == 0 and matrix.data_ptr() % VECTOR == 0


def _descriptors(*matrices: Tensor) -> bool:
    """Whether these go by descriptor: 16-bit, aligned, and shared memory enough for ``WIDE``.

    That is Hopper and the data centre's Blackwell; the desktop's has 99 KiB and Ampere's kernel.
    """
    large = architecture(matrices[0]) // 10 in (9, 10)
    return large and matrices[0].element_size() == 2 and all(map(_fetchable, matrices))


def _tiles(h: Tensor, out_dim: int, described: bool) -> Tiles:
    if h.dtype == torch.float32:
        return FP32
    if not described:
        return AMPERE
    return WIDE if out_dim > NARROW.n else NARROW


@launcher
def feature_project_triton(h: Tensor, weight: Tensor, cached: Tensor) -> Tensor:
    """Launch a kernel; arguments as in :func:`psssr_fast.ops.feature_project`.

    Raises:
        UsageError: an operand has another shape, dtype or device than ``h`` asks for.
    """
    require_float("feature_project", "h", h, rank=3)
    require_float("feature_project", "weight", weight, rank=2)
    batch, tokens, dim = h.shape
    out_dim = weight.shape[0]
    require("feature_project", "weight", weight, (out_dim, dim), like=h)
    require("feature_project", "cached", cached, (batch, tokens, out_dim), like=h)
    h, cached = h.reshape(-1, dim).contiguous(), cached.reshape(-1, out_dim).contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    out = torch.empty_like(cached)
    if not out.numel():
        return out.view(batch, tokens, out_dim)
    described = _descriptors(h, weight, out)
    tiles = _tiles(h, out_dim, described)
    count = triton.cdiv(len(h), tiles.m) * triton.cdiv(out_dim, tiles.n)
    options = {"M": tiles.m, "N": tiles.n, "K": tiles.k}
    options |= {"num_warps": tiles.warps, "num_stages": tiles.stages}
    if described:
        programs = min(count, _programs(h))
        _descriptor_kernel[(programs,)](
            TensorDescriptor.from_tensor(h, [tiles.m, tiles.k]),
            TensorDescriptor.from_tensor(weight, [tiles.n, tiles.k]),
            cached,
            TensorDescriptor.from_tensor(out, [tiles.m, tiles.n // 2]),
            len(h), DIM=dim, OUT_DIM=out_dim, PROGRAMS=programs, **options,
        )  # fmt: skip
    else:
        _pointer_kernel[(count,)](
            h, weight, cached, out, len(h), weight.stride(0), DIM=dim, OUT_DIM=out_dim, **options
        )
    return out.view(batch, tokens, out_dim)
