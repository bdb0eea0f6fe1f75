"""How low-resolution clips are made of high-resolution ones, by name and seed.

- ``bicubic``: antialiased bicubic reduction.
- ``bd``: Gaussian of standard deviation 1.5 pixels, then every fourth pixel.
- ``light``: a little blur, antialiased reduction, a little noise, H.264: a good web video.
- ``mixed``: 70 % ``bicubic``, of which a quarter with a little noise, 30 % ``light``: what ``nano``
  is trained with.
- ``realesrgan``: the published second-order degradation.
- ``realesrgan_released``: the variant of it that the PS-SR release trains with.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.training.blur import blur_separable, gaussian_taps
from psssr_fast.training.compression import h264
from psssr_fast.training.draws import Draw
from psssr_fast.training.realesrgan import apply_chain, draw_chain, draw_released_chain

DEGRADATIONS = ("bicubic", "bd", "light", "mixed", "realesrgan", "realesrgan_released")

BD_SIGMA = 1.5  # high-resolution pixels
BD_TAPS = 14  # four standard deviations and a half on either side
LIGHT_BLUR = (0.2, 1.2)  # standard deviation, high-resolution pixels
LIGHT_NOISE = (0.0, 2.0)  # standard deviation, 8-bit steps
LIGHT_CRF = (18, 30)  # x264's, both ends drawn
MIXED_LIGHT = 0.3  # share of the clips that are degraded as by ``light``
MIXED_NOISY, MIXED_NOISE = 0.25, (0.0, 6.0)  # share of the others with noise; 8-bit steps


@dataclass(frozen=True)
class Light:
    """What ``light`` does to a clip: two standard deviations (pixels, 8-bit steps) and a CRF."""

    blur: float
    noise: float
    crf: int


def draw_light(draw: Draw) -> Light:
    """The ``light`` degradation of one clip."""
    return Light(draw.uniform(*LIGHT_BLUR), draw.uniform(*LIGHT_NOISE), draw.integer(*LIGHT_CRF))


def degrade(clips: Tensor, name: str, seed: int | torch.Generator, scale: int = 4) -> Tensor:
    """Low-resolution clips, at their own small size.

    Args:
        clips: ``[batch, 3, frames, height, width]`` in [-1, 1], any device; height and width are
            multiples of ``scale``.
        name: one of ``DEGRADATIONS``.
        seed: decides every draw; or a generator (of the CPU), from which one is taken. Clip ``i``
            of a batch has a stream of its own, and its strengths are drawn once for all frames.
        scale: how much smaller.

    Returns:
        ``[batch, 3, frames, height / scale, width / scale]`` in [-1, 1] on the levels of 8 bits;
        dtype and device of ``clips``.

    Raises:
        UsageError: no such degradation, or sizes that do not divide.
    """
    if name not in DEGRADATIONS:
        raise UsageError(f"no degradation {name!r}; known are: {', '.join(DEGRADATIONS)}")
    height, width = clips.shape[-2:]
    if scale < 1 or height % scale or width % scale:
        raise UsageError(f"clips of {width}x{height} cannot be made {scale} times smaller; crop")
    stream = Draw(seed)
    size = (height // scale, width // scale)
    low = [
        _degrade_clip(clip.transpose(0, 1).float(), name, size, Draw(stream.seed()))
        for clip in clips
    ]
    eight_bit = torch.stack(low).clamp(0, 1).mul(255).round().div(127.5).sub(1)
    return eight_bit.transpose(1, 2).to(clips.dtype)


def _degrade_clip(clip: Tensor, name: str, size: tuple[int, int], draw: Draw) -> Tensor:
    """``[frames, 3, H, W]`` in [-1, 1] to ``[frames, 3, *size]`` in [0, 1]."""
    frames = (clip + 1) / 2
    if name == "mixed":
        if not draw.chance(MIXED_LIGHT):
            noise = draw.uniform(*MIXED_NOISE) / 255 if draw.chance(MIXED_NOISY) else 0.0
            low = _reduce(frames, size)
            return low + draw.normal(low.shape).to(low) * noise if noise else low
        name = "light"
    if name == "bicubic":
        return _reduce(frames, size)
    if name == "bd":
        return blur_separable(frames, gaussian_taps(BD_SIGMA, BD_TAPS), clip.shape[-1] // size[1])
    if name == "light":
        return apply_light(frames, draw_light(draw), size, draw)
    released = name == "realesrgan_released"
    chain = draw_released_chain(draw, len(frames)) if released else draw_chain(draw)
    return apply_chain(frames, chain, size, draw)


def apply_light(frames: Tensor, light: Light, size: tuple[int, int], draw: Draw) -> Tensor:
    """Blur, reduce, add noise and compress ``[frames, 3, H, W]`` in [0, 1]."""
    low = _reduce(blur_separable(frames, gaussian_taps(light.blur)), size)
    grain = draw.normal(low.shape).to(low) * (light.noise / 255)
    return h264(low + grain, light.crf)


def _reduce(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
