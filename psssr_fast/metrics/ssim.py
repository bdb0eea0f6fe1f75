"""Structural similarity (Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, 2004)."""

import torch
from torch import Tensor

from psssr_fast.errors import InputError
from psssr_fast.metrics.pictures import check_pair, crop_border, studio_luma, widened

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def gaussian(size: int, sigma: float) -> Tensor:
    """Samples of a Gaussian that sum to 1, fp64 ``[size]``."""
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    taps = torch.exp(-x.square() / (2 * sigma**2))
    return taps / taps.sum()


def ssim(result: Tensor, truth: Tensor, *, luma: bool = False, border: int = 0) -> Tensor:
    """Mean structural similarity, frame by frame.

    An 11x11 Gaussian window of sigma 1.5 at every place where it fits into the picture, K1 0.01,
    K2 0.03, weights that sum to 1 (no sample correction), the mean over places and, in RGB, over
    channels. That is the authors' MATLAB code without its automatic downsampling, as the
    super-resolution literature uses it.

    Args:
        result, truth: ``[frames, 3, height, width]`` in [0, 1].
        luma: of BT.601 studio luma instead of RGB.
        border: pixels left out on every side.

    Returns:
        ``[frames]``, fp64; 1 where the frames are equal.

    Raises:
        InputError: the clips differ in shape, or are smaller than the window.
        UsageError: the border leaves nothing.
    """
    check_pair(result, truth)
    result, truth = (crop_border(widened(clip), border) for clip in (result, truth))
    if min(result.shape[-2:]) < WINDOW:
        height, width = result.shape[-2:]
        raise InputError(f"SSIM needs at least {WINDOW}x{WINDOW} pixels; got {width}x{height}")
    if luma:
        result, truth = studio_luma(result)[:, None], studio_luma(truth)[:, None]
    return torch.stack([_mean_ssim(*pair) for pair in zip(result, truth, strict=True)])


def _mean_ssim(a: Tensor, b: Tensor) -> Tensor:
    # Variances do not change with the zero point, and near it fp32 keeps more of them.
    a, b = a - 0.5, b - 0.5
    mean_a, mean_b = _smooth(a), _smooth(b)
    spread = _smooth(a * a + b * b) - mean_a.square() - mean_b.square()
    together = _smooth(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    lightness = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    structure = (2 * together + C2) / (spread + C2)
    return (lightness * structure).double().mean()


def _smooth(planes: Tensor) -> Tensor:
    """Weighted means ``[channels, H - 10, W - 10]`` over the window at every place it fits."""
    taps = gaussian(WINDOW, SIGMA).tolist()
    for axis in (-2, -1):
        length = planes.shape[axis] - WINDOW + 1
        total = planes.narrow(axis, 0, length) * taps[0]
        for start, tap in enumerate(taps[1:], 1):
            total.add_(planes.narrow(axis, start, length), alpha=tap)
        planes = total
    return planes
