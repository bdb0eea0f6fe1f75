"""The losses of PS-SR (paper, equations 7 to 12), as functions of tensors and networks.

Equation 8 as printed noises its latents with the roles of signal and noise exchanged; this is the
reading that the release has: ``z_t = (1 - sigma) z + sigma eps``, timestep ``1000 sigma``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``velocity = denoiser(noisy latents, timestep [batch])``: an estimate of ``eps - z``."""


def add_noise(latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """``(1 - sigma) z + sigma eps`` for ``sigma = timestep / 1000``, ``[batch]``."""
    sigma = _sigma(timestep, latents)
    return (1 - sigma) * latents + sigma * noise


def _sigma(timestep: Tensor, like: Tensor) -> Tensor:
    return (timestep / 1000).to(like).view(-1, *[1] * (like.ndim - 1))


def vsd_loss(
    estimate: Tensor, teacher: Denoiser, regulariser: Denoiser, noise: Tensor, timestep: Tensor
) -> Tensor:
    """Variational score distillation (equation 8): a loss whose gradient is what VSD wants.

    The gradient by the estimate is ``w sigma (v_teacher - v_regulariser)``: from where the
    regulariser, which knows the student's results, would denoise it to, towards where the teacher
    would. ``w`` is one over the teacher's mean absolute correction, so that all timesteps count
    alike. The value says nothing about progress.

    Args:
        estimate: of the high-resolution latents, ``[batch, channels, frames, height, width]``.
        teacher: the frozen denoiser.
        regulariser: the one that follows the student.
        noise, timestep: of the test.
    """
    with torch.no_grad():
        noisy = add_noise(estimate, noise, timestep)
        sigma = _sigma(timestep, estimate)
        velocity = teacher(noisy, timestep)
        correction = (estimate - (noisy - sigma * velocity)).abs()
        scale = correction.mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
        gradient = sigma * (velocity - regulariser(noisy, timestep)) / scale
        target = estimate - gradient
    return 0.5 * F.mse_loss(estimate, target)


def denoising_loss(latents: Tensor, denoiser: Denoiser, noise: Tensor, timestep: Tensor) -> Tensor:
    """Flow matching from noise: what trains a teacher, and lets VSD's regulariser follow."""
    velocity = denoiser(add_noise(latents, noise, timestep), timestep)
    return F.mse_loss(velocity, noise - latents)


class Discriminator(nn.Module):
    """Tells latents of real pictures from restored ones, frame by frame; after VGG.

    Pairs of 3x3 convolutions, each pair wider and (up to three times, while there is something
    left) half as large; one score for each place of the last level.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        widths = [dim, 2 * dim, 4 * dim, 8 * dim]
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            before = channels if level == 0 else widths[level - 1]
            for inputs in (before, width):
                conv = nn.Conv2d(inputs, width, 3, padding=1)
                # torch's default halves what passes at every layer: nothing is left after eight
                nn.init.kaiming_normal_(conv.weight, a=0.2)
                layers += [conv, nn.LeakyReLU(0.2)]
            if level < len(widths) - 1:
                layers.append(nn.AvgPool2d(2, ceil_mode=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Scores of ``[batch, channels, frames, height, width]``: high for real ones."""
        scores: Tensor = self.layers(latents.transpose(1, 2).flatten(0, 1))
        return scores


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, from its scores."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def adversarial_loss(fake: Tensor) -> Tensor:
    """Of the student, from the discriminator's scores of what it made."""
    return -fake.mean()


def pixel_loss(picture: Tensor, truth: Tensor, norm: str = "l2") -> Tensor:
    """L2 of pictures in [-1, 1] (equation 11, without its perceptual term), or ``"l1"``."""
    return (F.mse_loss if norm == "l2" else F.l1_loss)(picture, truth)


def perceptual_loss(picture: Tensor, truth: Tensor, lpips: nn.Module) -> Tensor:
    """Mean LPIPS of the frames of two clips ``[batch, 3, frames, height, width]`` in [-1, 1]."""
    frames, expected = (x.transpose(1, 2).flatten(0, 1).add(1).div(2) for x in (picture, truth))
    distances: Tensor = lpips(frames, expected)
    return distances.mean()
