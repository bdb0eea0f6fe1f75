"""What a step of the sampler makes of the network's velocity."""

import torch
from torch import Tensor


def flow_step_ref(
    latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float
) -> tuple[Tensor, Tensor]:
    """Compute :func:`flow_step` as the sampler does, product and difference each rounded."""
    return latents - sigma * velocity, latents - (sigma - sigma_next) * velocity


@torch.library.custom_op("psssr_fast::flow_step", mutates_args=())
def flow_step(
    latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float
) -> tuple[Tensor, Tensor]:
    """Move along the velocity: the estimate of the end, and the next state, from one read.

    Equations 5 and 6 of the paper: ``estimate = z - sigma v`` is decoded,
    ``next = z - (sigma - sigma_next) v`` is what the next step starts from. The kernel computes
    in fp32 and rounds once.

    Args:
        latents: the state ``z``, of any shape; fp16, bf16 or fp32.
        velocity: ``v``, the network's output; shape and dtype of ``latents``.
        sigma: noise level of ``latents``, 0 to 1.
        sigma_next: noise level of the next state.

    Returns:
        Estimate and next state, contiguous, shape and dtype of ``latents``.

    Raises:
        UsageError: on CUDA, an operand has another shape or dtype.
    """
    estimate, next_latents = flow_step_ref(latents, velocity, sigma, sigma_next)
    return estimate.contiguous(), next_latents.contiguous()


@flow_step.register_kernel("cuda")
def _(latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
    from psssr_fast.kernels.flow_step import flow_step_triton

    return flow_step_triton(latents, velocity, sigma, sigma_next)


@flow_step.register_fake
def _(latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
    return latents.new_empty(latents.shape), latents.new_empty(latents.shape)
