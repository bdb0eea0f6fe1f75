"""Whether a result still agrees with what it was made from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.errors import InputError
from psssr_fast.metrics.pictures import check_clip, check_pair, widened
from psssr_fast.metrics.psnr import psnr
from psssr_fast.ops.frequency_update import low_frequency_drift


def lr_consistency(result: Tensor, low: Tensor) -> Tensor:
    """PSNR of the result, brought back to the input's size, against the input.

    Reduced by antialiased bicubic interpolation, clamped, not rounded. For an input that was made
    that way the truth itself scores about 59 dB: what is left is the input's rounding to 8 bits.

    Args:
        result: ``[frames, 3, height, width]`` in [0, 1].
        low: the input, no larger.

    Returns:
        fp64 ``[frames]``, dB over RGB.

    Raises:
        InputError: the input is larger, or has another number of frames.
    """
    check_clip(result)
    check_clip(low)
    size = low.shape[-2:]
    if len(low) != len(result) or size[0] > result.shape[-2] or size[1] > result.shape[-1]:
        raise InputError(
            f"the input {list(low.shape)} must have the frames of the result "
            f"{list(result.shape)} and be no larger"
        )
    small = F.interpolate(widened(result), size, mode="bicubic", antialias=True).clamp(0, 1)
    return psnr(small, low.to(small))


def drift(result: Tensor, base: Tensor) -> Tensor:
    """Low-frequency drift: rms over pixels of the low-passed luma difference of two results.

    The low-pass is the one of the frequency-domain update (Butterworth, 0.2 cycles per pixel,
    second order, as 19x19 taps), the base is the picture whose low frequencies the update keeps.

    Args:
        result, base: ``[frames, 3, height, width]`` in [0, 1].

    Returns:
        fp64 ``[frames]``, 8-bit levels.

    Raises:
        InputError: the clips differ in shape.
    """
    check_pair(result, base)
    settings = FrequencyUpdate()
    pairs = zip(base.float().split(1), result.float().split(1), strict=True)
    moved = [low_frequency_drift(before, after, settings).rms for before, after in pairs]
    return torch.tensor(moved, dtype=torch.float64)
