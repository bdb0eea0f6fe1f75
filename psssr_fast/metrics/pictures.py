"""What every metric does first: check two clips, crop their border, take their luma."""

import torch
from torch import Tensor

from psssr_fast.errors import InputError, UsageError

_BT601 = (65.481 / 255, 128.553 / 255, 24.966 / 255)


def studio_luma(frames: Tensor) -> Tensor:
    """BT.601 luma as MATLAB's ``rgb2ycbcr`` has it, 16/255 to 235/255, not rounded.

    The "Y" of the super-resolution literature: its PSNR is about 1.3 dB above that of full-range
    luma.

    Args:
        frames: RGB in [0, 1], ``[..., 3, height, width]``.

    Returns:
        ``[..., height, width]``, dtype of ``frames``.
    """
    red, green, blue = frames.unbind(-3)
    return 16 / 255 + _BT601[0] * red + _BT601[1] * green + _BT601[2] * blue


def check_clip(frames: Tensor) -> None:
    """Refuse what is no clip.

    Raises:
        InputError: not floating point ``[frames, 3, height, width]``, or empty.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
        raise InputError(
            "a clip must be a float tensor [frames, 3, height, width] in [0, 1]; got "
            f"{frames.dtype} {list(frames.shape)}"
        )
    if 0 in frames.shape:
        raise InputError(f"a clip must not be empty; got shape {list(frames.shape)}")


def check_pair(result: Tensor, truth: Tensor) -> None:
    """Refuse two clips that cannot be compared pixel by pixel.

    Raises:
        InputError: one is no clip, or they differ in shape.
    """
    check_clip(result)
    check_clip(truth)
    if result.shape != truth.shape:
        raise InputError(
            f"clips of one shape are needed; got {list(result.shape)} and {list(truth.shape)}"
        )


def crop_border(frames: Tensor, border: int) -> Tensor:
    """``frames`` without ``border`` pixels on every side.

    Raises:
        UsageError: ``border`` is negative or leaves nothing.
    """
    height, width = frames.shape[-2:]
    if border < 0 or 2 * border >= min(height, width):
        raise UsageError(
            f"a border of {border} pixels cannot be cut off a {width}x{height} picture"
        )
    return frames[..., border : height - border, border : width - border]


def widened(frames: Tensor) -> Tensor:
    """fp32 at least: half precision cannot hold a sum over a picture."""
    return frames.to(torch.promote_types(frames.dtype, torch.float32))
