"""The sampler: one step of the base, cheap steps of the draft. Pure functions of tensors.

PS-SR moves along the straight line from low- to high-resolution latents,
``z = (1 - s) z_H + s z_L`` (equation 4). The network predicts the velocity ``v``; with the
release's scale of it, ``z - sigma v`` estimates ``z_H`` and ``z - (sigma - sigma_next) v`` is the
next state (equations 5 and 6 with ``s = sigma / sigma_base``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from psssr_fast.config import Sampling
from psssr_fast.models.dit import DitOutput
from psssr_fast.ops.flow_step import flow_step, flow_step_ref

TRAIN_STEPS = 1000  # timesteps of the flow-matching scheduler the model was trained with
SHIFT = 5.0  # its time shift: sigma = shift s / (1 + (shift - 1) s)


class Transformer(Protocol):
    """What the sampler needs of a network: :class:`~psssr_fast.models.dit.Dit`, or an engine."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, as a module has them."""

    def prepare_features(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """What :meth:`step` wants of the base's features, computed once for all steps."""

    def step(
        self, latents: Tensor, timestep: float, context: Any, features: Sequence[Tensor]
    ) -> DitOutput:
        """The velocity at one timestep, and the features a base keeps."""


@dataclass(frozen=True)
class Schedule:
    """When the network is evaluated.

    Attributes:
        timesteps: what the time embedding sees, 0 to 1000; the first is the base's.
        sigmas: the noise level of each, 0 to 1, and of timestep 0 as the last (the scheduler's
            nearest one, 0.00498, not 0: the state it leads to is never used).
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """What one evaluation gives, all shaped like the latents.

    Attributes:
        velocity: the network's output.
        estimate: of the high-resolution latents, ``z - sigma v``; this is what gets decoded.
        next_latents: the state of the next step, ``z - (sigma - sigma_next) v``.
    """

    velocity: Tensor
    estimate: Tensor
    next_latents: Tensor


def make_schedule(sampling: Sampling) -> Schedule:
    """Timesteps as the network sees them, and the sigma of the nearest training timestep."""
    timesteps = torch.tensor(sampling.timesteps)
    if sampling.timestep_rounding == "bf16":
        timesteps = timesteps.bfloat16().float()
    s = torch.linspace(1, 0, TRAIN_STEPS + 1)[:-1]
    sigmas = SHIFT * s / (1 + (SHIFT - 1) * s)
    wanted = torch.cat([timesteps, torch.zeros(1)])
    nearest = (wanted[:, None] - TRAIN_STEPS * sigmas).abs().argmin(dim=1)
    return Schedule(tuple(timesteps.tolist()), tuple(sigmas[nearest].tolist()))


def base_step(
    base: Transformer, low_latents: Tensor, context: Any, schedule: Schedule
) -> tuple[Step, tuple[Tensor, ...]]:
    """The base's only step, from the low-resolution latents.

    Args:
        base: the base transformer.
        low_latents: ``z_L``, ``[batch, channels, frames, height, width]``.
        context: the prompt's embedding, or ``None``.
        schedule: of all steps.

    Returns:
        The step, and the base's features for the draft.
    """
    stacked = torch.cat([low_latents, low_latents], dim=1)
    velocity, features = base.step(stacked, schedule.timesteps[0], context, ())
    return _advance(low_latents, velocity, *schedule.sigmas[:2]), features


def draft_steps(
    draft: Transformer,
    latents: Tensor,
    low_latents: Tensor,
    features: Sequence[Tensor],
    context: Any,
    schedule: Schedule,
    sampling: Sampling,
) -> list[Step]:
    """All steps of the draft, from the base's ``next_latents``.

    The base's features were captured once and serve every step unchanged.

    Args:
        draft: the draft transformer.
        latents: the state after the base's step.
        low_latents: ``z_L``, the condition.
        features: what the base kept, one for each block of the draft.
        context: the prompt's embedding, or ``None``.
        schedule: of all steps, the base's included.
        sampling: whether the condition is ``z_L`` or zeros.

    Returns:
        One step for each timestep after the first.
    """
    condition = low_latents
    if sampling.draft_condition == "zeros":
        condition = torch.zeros_like(low_latents)
    features = draft.prepare_features(features)
    steps = []
    for index, timestep in enumerate(schedule.timesteps[1:], start=1):
        stacked = torch.cat([latents, condition], dim=1)
        velocity, _ = draft.step(stacked, timestep, context, features)
        steps.append(_advance(latents, velocity, *schedule.sigmas[index : index + 2]))
        latents = steps[-1].next_latents
    return steps


def _advance(latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Step:
    trains = torch.is_grad_enabled() and (latents.requires_grad or velocity.requires_grad)
    step = flow_step_ref if trains else flow_step  # kernels have no gradient
    estimate, next_latents = step(latents, velocity, sigma, sigma_next)
    return Step(velocity, estimate, next_latents)
