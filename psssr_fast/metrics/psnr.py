"""Peak signal-to-noise ratio."""

import torch
from torch import Tensor

from psssr_fast.metrics.pictures import check_pair, crop_border, studio_luma, widened


def psnr(result: Tensor, truth: Tensor, *, luma: bool = False, border: int = 0) -> Tensor:
    """``-10 log10`` of the mean squared difference, frame by frame.

    Args:
        result, truth: ``[frames, 3, height, width]`` in [0, 1].
        luma: of BT.601 studio luma instead of RGB (all three channels in one mean).
        border: pixels left out on every side.

    Returns:
        fp64 ``[frames]``, dB; infinite where the frames are equal.

    Raises:
        InputError, UsageError: the clips differ in shape, or the border leaves nothing.
    """
    check_pair(result, truth)
    result, truth = (crop_border(widened(clip), border) for clip in (result, truth))
    if luma:
        result, truth = studio_luma(result), studio_luma(truth)
    error = (result - truth).flatten(1).double().square().mean(1)
    return -10 * torch.log10(error)
