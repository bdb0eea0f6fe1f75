"""Blur kernels of the degradations: Gaussians round and long, flat-topped and peaked, and sinc.

Formulas and ranges: Real-ESRGAN (Wang et al., 2021) and its implementation in BasicSR.
"""

from dataclasses import dataclass
from math import ceil, cos, pi, sin
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.training.draws import Draw

KERNEL_SIZE = 21  # the largest; smaller ones are padded with zeros
SIZES = tuple(range(7, 22, 2))
SHAPES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
SHAPE_PROBS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
GENERALIZED_BETA = (0.5, 4.0)
PLATEAU_BETA = (1.0, 2.0)


@dataclass(frozen=True)
class Blur:
    """One kernel, by its numbers.

    Attributes:
        shape: one of ``SHAPES``, ``"sinc"``, or ``"pulse"`` (changes nothing).
        size: side in pixels, odd.
        sigma: standard deviations along the kernel's own two axes, pixels.
        rotation: of those axes, radians.
        beta: exponent of the generalized and plateau shapes.
        cutoff: of a sinc, radians a pixel.
    """

    shape: str
    size: int = KERNEL_SIZE
    sigma: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    beta: float = 1.0
    cutoff: float = pi

    def kernel(self) -> Tensor:
        """``[21, 21]`` in fp32, sum 1."""
        if self.shape == "pulse":
            weights = torch.ones(1, 1, dtype=torch.float64)
        elif self.shape == "sinc":
            weights = self._sinc()
        else:
            distance = self._distance()
            if self.shape.startswith("plateau"):
                weights = 1 / (1 + distance.pow(self.beta))
            else:
                weights = torch.exp(-0.5 * distance.pow(self.beta))
        weights = weights / weights.sum()
        return F.pad(weights, [(KERNEL_SIZE - len(weights)) // 2] * 4).float()

    def _grid(self) -> tuple[Tensor, Tensor]:
        axis = torch.arange(self.size, dtype=torch.float64) - self.size // 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return x, y

    def _distance(self) -> Tensor:
        """Squared distance from the centre in standard deviations."""
        x, y = self._grid()
        along = (x * cos(self.rotation) + y * sin(self.rotation)) / self.sigma[0]
        across = (y * cos(self.rotation) - x * sin(self.rotation)) / self.sigma[1]
        return along.square() + across.square()

    def _sinc(self) -> Tensor:
        """The ideal low-pass over a disc of frequencies: ``c J1(c r) / (2 pi r)``."""
        x, y = self._grid()
        radius = (x.square() + y.square()).sqrt()
        centre = radius == 0
        wave = torch.special.bessel_j1(self.cutoff * radius)
        ring = self.cutoff * wave / (2 * pi * radius.masked_fill(centre, 1))
        return ring.masked_fill(centre, self.cutoff**2 / (4 * pi))


def draw_blur(draw: Draw, sigmas: tuple[float, float], sinc_prob: float) -> Blur:
    """A kernel of the first or the second blur, as Real-ESRGAN draws it."""
    size = SIZES[draw.integer(0, len(SIZES) - 1)]
    if draw.chance(sinc_prob):
        return Blur("sinc", size, cutoff=draw.uniform(pi / 3 if size < 13 else pi / 5, pi))
    shape = SHAPES[draw.pick(SHAPE_PROBS)]
    first = draw.uniform(*sigmas)
    long = "aniso" in shape
    second = draw.uniform(*sigmas) if long else first
    rotation = draw.uniform(-pi, pi) if long else 0.0
    beta = 1.0
    if shape.startswith(("generalized", "plateau")):
        low, high = GENERALIZED_BETA if shape.startswith("generalized") else PLATEAU_BETA
        # half of the draws on either side of 1, whatever the lengths of the sides
        beta = draw.uniform(low, 1) if draw.chance(0.5) else draw.uniform(1, high)
    return Blur(shape, size, (first, second), rotation, beta)


def draw_final(draw: Draw, prob: float) -> Blur:
    """The last sinc of Real-ESRGAN, or nothing."""
    if not draw.chance(prob):
        return Blur("pulse")
    size = SIZES[draw.integer(0, len(SIZES) - 1)]
    return Blur("sinc", size, cutoff=draw.uniform(pi / 3, pi))


def filter_frames(frames: Tensor, kernels: Tensor) -> Tensor:
    """Filter every channel of ``[frames, C, H, W]``; edges are mirrored.

    Args:
        frames: the pictures.
        kernels: ``[1, k, k]`` for all frames or ``[frames, k, k]``, one for each; ``k`` odd.
    """
    count, channels, height, width = frames.shape
    reach = kernels.shape[-1] // 2
    edges: Literal["reflect", "replicate"] = (
        "reflect" if min(height, width) > reach else "replicate"
    )
    padded = F.pad(frames, [reach] * 4, mode=edges)
    weights = kernels.to(frames).expand(count, -1, -1)
    if len(kernels) == 1:
        return F.conv2d(padded.flatten(0, 1)[:, None], weights[:1, None]).view_as(frames)
    weights = weights.repeat_interleave(channels, dim=0)[:, None]
    out = F.conv2d(padded.flatten(0, 1)[None], weights, groups=count * channels)
    return out.view_as(frames)


def gaussian_taps(sigma: float, taps: int | None = None) -> Tensor:
    """Weights of a one-dimensional Gaussian, sum 1, fp64; an even number straddles the centre.

    Args:
        sigma: pixels.
        taps: how many; enough for four standard deviations on either side if left out.
    """
    count = taps or 2 * ceil(4 * sigma) + 1
    offsets = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    return weights / weights.sum()


def blur_separable(frames: Tensor, taps: Tensor, stride: int = 1) -> Tensor:
    """Filter ``[frames, C, H, W]`` with ``taps`` along both axes, keeping every ``stride``-th.

    Edges are mirrored (repeated where a picture is smaller than the kernel). With an even number
    of taps and an even stride, the pixels kept sit at the centres of the blocks they stand for.
    """
    count, channels, height, width = frames.shape
    total = len(taps) - stride
    before, after = total // 2, total - total // 2
    edges: Literal["reflect", "replicate"] = (
        "reflect" if min(height, width) > after else "replicate"
    )
    x = F.pad(frames, [before, after, before, after], mode=edges).flatten(0, 1)[:, None]
    weights = taps.to(frames)
    x = F.conv2d(x, weights.view(1, 1, -1, 1), stride=(stride, 1))
    x = F.conv2d(x, weights.view(1, 1, 1, -1), stride=(1, stride))
    return x.view(count, channels, *x.shape[-2:])
