"""NIQE (Mittal, Soundararajan, Bovik: Making a "Completely Blind" Image Quality Analyzer, 2013).

The authors' MATLAB release, step by step: BT.601 studio luma rounded to whole levels; cut to
whole 96x96 blocks; per block 18 statistics of the luma normalised by its local mean and deviation
(7x7 Gaussian, sigma 7/6, edges repeated); again at half size (MATLAB's antialiased ``imresize``,
bicubic, edges mirrored) with 48x48 blocks; distance of the mean and covariance over blocks to
those of pristine photographs. It differs from that release in one thing, as every Python port
does: the luma of ``rgb2ycbcr`` rather than of ``rgb2gray``.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import InputError
from psssr_fast.metrics.pictures import check_clip, crop_border, studio_luma

BLOCK = 96
PRISTINE = Path(__file__).parents[1] / "weights/niqe_pristine.npz"
# MATLAB's bicubic kernel (a = -0.5) stretched to twice its width, for shrinking by 2.
_HALVE = (-0.01171875, -0.03515625, 0.11328125, 0.43359375)
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True, eq=False)
class Pristine:
    """What undistorted photographs look like: the authors' model of 125 of them.

    Attributes:
        mean: ``[36]``, fp64.
        covariance: ``[36, 36]``, fp64.
        window: ``[7, 7]``, fp64; sums to 1.
    """

    mean: Tensor
    covariance: Tensor
    window: Tensor


@lru_cache(maxsize=1)
def pristine() -> Pristine:
    """The model that comes with this package."""
    with np.load(PRISTINE, allow_pickle=False) as content:
        mean, covariance, window = (
            torch.from_numpy(content[name])
            for name in ("mu_pris_param", "cov_pris_param", "gaussian_window")
        )
    return Pristine(mean.flatten(), covariance, window)


def niqe(frames: Tensor, *, border: int = 0) -> Tensor:
    """Naturalness of every frame by itself, without a reference; lower is better.

    Args:
        frames: ``[frames, 3, height, width]`` in [0, 1].
        border: pixels left out on every side, before the blocks are cut.

    Returns:
        fp64 ``[frames]``, on the CPU. NaN for a frame without texture (one colour).

    Raises:
        InputError: the frames do not hold two blocks of 96x96 pixels.
        UsageError: the border leaves nothing.
    """
    check_clip(frames)
    lumas = (255 * studio_luma(crop_border(frames, border).double().cpu())).round()
    height, width = (size // BLOCK * BLOCK for size in lumas.shape[-2:])
    if height * width < 2 * BLOCK**2:
        raise InputError(
            f"NIQE needs at least two blocks of {BLOCK}x{BLOCK} pixels; got "
            f"{lumas.shape[-1]}x{lumas.shape[-2]}"
        )
    return torch.stack([_distance(luma[:height, :width]) for luma in lumas])


def _distance(luma: Tensor) -> Tensor:
    model = pristine()
    fine = block_features(luma, BLOCK)
    coarse = block_features(halve(luma), BLOCK // 2)
    features = torch.cat((fine, coarse), 1)
    complete = features[~features.isnan().any(1)]
    if len(complete) < 2:
        return torch.tensor(math.nan, dtype=torch.float64)
    # As in the release: means leave out single missing numbers, the covariance whole blocks.
    change = model.mean - features.nanmean(0)
    spread = torch.linalg.pinv((model.covariance + torch.cov(complete.T)) / 2)
    return (change @ spread @ change).sqrt()


def halve(luma: Tensor) -> Tensor:
    """Shrink ``[height, width]`` (both even) by 2 as MATLAB's ``imresize(x, 0.5)`` does."""
    taps = luma.new_tensor([*_HALVE, *reversed(_HALVE)])
    for _ in range(2):
        padded = torch.cat((luma[:3].flip(0), luma, luma[-3:].flip(0)))
        luma = (padded.unfold(0, 8, 2) @ taps).T
    return luma


def normalised(luma: Tensor) -> Tensor:
    """Luma minus its local mean, over its local deviation plus 1; ``[height, width]``."""
    window = pristine().window[None, None].to(luma.dtype)
    padded = F.pad(luma[None, None], (3, 3, 3, 3), mode="replicate")
    mean, square = (F.conv2d(x, window)[0, 0] for x in (padded, padded.square()))
    return (luma - mean) / ((square - mean.square()).abs().sqrt() + 1)


def block_features(luma: Tensor, edge: int) -> Tensor:
    """18 statistics of each block of ``edge`` x ``edge`` pixels, ``[blocks, 18]``."""
    blocks = normalised(luma).unfold(0, edge, edge).unfold(1, edge, edge)
    blocks = blocks.reshape(-1, edge, edge)
    shape, left, right = fit_asymmetric(blocks)
    features = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = fit_asymmetric(blocks * blocks.roll(shift, (1, 2)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        features += [shape, mean, left, right]
    return torch.stack(features, 1)


@lru_cache(maxsize=1)
def _shapes() -> tuple[Tensor, Tensor]:
    """The shapes that are tried, 0.2 to 10 in steps of 0.001, and the ratio that belongs to each.

    The ratio, squared mean magnitude over mean square, grows with the shape.
    """
    shapes = torch.arange(9801, dtype=torch.float64) * 0.001 + 0.2
    log = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    return shapes, log.exp()


def fit_asymmetric(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalised Gaussian to the values of each block, by moments.

    Args:
        blocks: ``[blocks, height, width]``, fp64.

    Returns:
        Shape, left scale and right scale, each ``[blocks]``; a scale is NaN where a block has no
        value on its side.
    """
    values = blocks.flatten(1)
    left, right = (_root_mean_square(values, side) for side in (values < 0, values > 0))
    ratio = left / right
    magnitude = values.abs().mean(1).square() / values.square().mean(1)
    target = magnitude * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, ratios = _shapes()
    above = torch.searchsorted(ratios, target).clamp(1, len(ratios) - 1)
    nearer_below = (target - ratios[above - 1]) <= (ratios[above] - target)
    index = torch.where(nearer_below, above - 1, above)
    shape = shapes[index.masked_fill(target.isnan(), 0)]  # what a minimum over NaN gives there
    scale = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    return shape, left * scale, right * scale


def _root_mean_square(values: Tensor, chosen: Tensor) -> Tensor:
    return ((values * chosen).square().sum(1) / chosen.sum(1)).sqrt()
