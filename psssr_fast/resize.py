"""Bringing frames to output size before the model sees them."""

import math

import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import UsageError

DEFAULT_SCALE = 4.0
MAX_SCALE = 16.0


def output_size(
    height: int, width: int, scale: float | None = None, target_height: int | None = None
) -> tuple[int, int]:
    """Output height and width: ``scale`` times the input (default 4), or a given height.

    With a target height the width follows the input's shape, rounded to an even number.

    Raises:
        UsageError: both are given, or the result would be empty or more than 16 times the input.
    """
    if scale is not None and target_height is not None:
        raise UsageError("give either scale or height, not both")
    if target_height is not None:
        if not isinstance(target_height, int) or target_height < 1:
            raise UsageError(
                f"height must be a whole number of pixels, at least 1; got {target_height!r}"
            )
        result = target_height, 2 * round(width * target_height / height / 2)
    else:
        factor = DEFAULT_SCALE if scale is None else scale
        if not math.isfinite(factor) or factor <= 0:
            raise UsageError(f"scale must be a positive number; got {factor}")
        result = round(height * factor), round(width * factor)
    if min(result) < 1 or result[0] > MAX_SCALE * height or result[1] > MAX_SCALE * width + 1:
        raise UsageError(
            f"output {result[1]}x{result[0]} from input {width}x{height}: the scale must lie "
            f"between one output pixel and {MAX_SCALE:g}x"
        )
    return result


def resize_frames(picture: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Resize ``[frames, 3, H, W]`` in [-1, 1]; bicubic overshoot is clamped.

    Enlarging interpolates the input's own pixels; shrinking (a target smaller than the input)
    antialiases, so that detail does not turn into moire.
    """
    if picture.shape[-2:] == (height, width):
        return picture
    if mode == "area":
        return F.interpolate(picture, (height, width), mode="area")
    shrinks = height < picture.shape[-2] or width < picture.shape[-1]
    out = F.interpolate(picture, (height, width), mode=mode, align_corners=False, antialias=shrinks)
    return out.clamp(-1, 1)
