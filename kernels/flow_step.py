"""Triton kernel for :func:`psssr_fast.ops.flow_step`."""

import triton
import triton.language as tl
from torch import Tensor

from psssr_fast.kernels._launch import launcher
from psssr_fast.kernels._rows import WARPS, require, require_float

BLOCK = 1024  # values of a program; latents are small: what counts is that this is one launch


@triton.jit
def _flow_step_kernel(
    latents_ptr, velocity_ptr, estimate_ptr, next_ptr, size, sigma, step, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    latents = tl.load(latents_ptr + index, mask=inside).to(tl.float32)
    velocity = tl.load(velocity_ptr + index, mask=inside).to(tl.float32)
    dtype = estimate_ptr.dtype.element_ty
    tl.store(estimate_ptr + index, (latents - sigma * velocity).to(dtype), mask=inside)
    tl.store(next_ptr + index, (latents - step * velocity).to(dtype), mask=inside)


@launcher
def flow_step_triton(
    latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments as in :func:`psssr_fast.ops.flow_step`.

    Raises:
        UsageError: ``latents`` is not of a supported dtype, or ``velocity`` is unlike it.
    """
    require_float("flow_step", "latents", latents)
    require("flow_step", "velocity", velocity, tuple(latents.shape), like=latents)
    estimate, next_latents = (latents.new_empty(latents.shape) for _ in range(2))
    _flow_step_kernel[(triton.cdiv(latents.numel(), BLOCK),)](
        latents.contiguous(), velocity.contiguous(), estimate, next_latents,
        latents.numel(), float(sigma), float(sigma - sigma_next),
        BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return estimate, next_latents
