"""The second-order degradation of Real-ESRGAN, and the fixed variant that PS-SR was trained with.

Values: ``options/train_realesrgan_x4plus.yml`` of xinntao/Real-ESRGAN; order of operations:
``realesrgan/models/realesrgan_model.py`` of it. What is drawn is kept apart from what is done, so
that the draws can be tested by themselves. A clip is drawn for once; noise differs between frames.
"""

from dataclasses import dataclass
from math import ceil, log2

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.training.blur import Blur, draw_blur, draw_final, filter_frames
from psssr_fast.training.compression import jpeg
from psssr_fast.training.draws import Draw

MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Order:
    """The published ranges of one of the two passes.

    Attributes:
        blur_prob: of blurring at all.
        blur_sigma: of the kernels, pixels.
        sinc_prob: of a sinc in place of a Gaussian.
        resize_probs: of growing, shrinking and keeping the size.
        resize_range: smallest and largest factor.
        gaussian_prob: of Gaussian noise; of Poisson noise otherwise.
        noise_sigma: of Gaussian noise, 8-bit steps.
        poisson_scale: factor on Poisson noise.
        gray_prob: of the same noise in all three channels.
        jpeg_quality: of the compression.
    """

    blur_prob: float
    blur_sigma: tuple[float, float]
    sinc_prob: float
    resize_probs: tuple[float, float, float]
    resize_range: tuple[float, float]
    gaussian_prob: float
    noise_sigma: tuple[float, float]
    poisson_scale: tuple[float, float]
    gray_prob: float
    jpeg_quality: tuple[float, float]


FIRST = Order(
    1.0, (0.2, 3), 0.1, (0.2, 0.7, 0.1), (0.15, 1.5), 0.5, (1, 30), (0.05, 3), 0.4, (30, 95)
)
SECOND = Order(
    0.8, (0.2, 1.5), 0.1, (0.3, 0.4, 0.3), (0.3, 1.2), 0.5, (1, 25), (0.05, 2.5), 0.4, (30, 95)
)
FINAL_SINC_PROB = 0.8
SINC_BEFORE_JPEG_PROB = 0.5


@dataclass(frozen=True)
class Noise:
    """One kind of noise: ``amount`` is a standard deviation in 8-bit steps, or Poisson's factor."""

    kind: str
    amount: float
    gray: bool


@dataclass(frozen=True)
class Pass:
    """What one pass does to a clip.

    Attributes:
        blurs: one kernel for the clip, one for each frame, or none.
        factor: of the resize; 1 keeps the size.
        mode: how to resize.
        noise: added after the resize.
        quality: of the JPEG that ends the pass.
    """

    blurs: tuple[Blur, ...]
    factor: float
    mode: str
    noise: Noise
    quality: float


@dataclass(frozen=True)
class Chain:
    """Everything that happens to a clip.

    Attributes:
        first, second: the two passes; the factor of the second is relative to the final size.
        final: the last sinc: one kernel, or one for each frame.
        mode: of the resize to the final size.
        sinc_before_jpeg: whether that resize and the last sinc come before the second JPEG.
    """

    first: Pass
    second: Pass
    final: tuple[Blur, ...]
    mode: str
    sinc_before_jpeg: bool


def draw_chain(draw: Draw) -> Chain:
    """The published degradation of one clip."""
    first, second = _draw_pass(draw, FIRST), _draw_pass(draw, SECOND)
    final = (draw_final(draw, FINAL_SINC_PROB),)
    mode = MODES[draw.integer(0, 2)]
    return Chain(first, second, final, mode, draw.chance(SINC_BEFORE_JPEG_PROB))


def _draw_pass(draw: Draw, order: Order) -> Pass:
    blurs: tuple[Blur, ...] = (draw_blur(draw, order.blur_sigma, order.sinc_prob),)
    if not draw.chance(order.blur_prob):
        blurs = ()
    low, high = order.resize_range
    factor = (draw.uniform(1, high), draw.uniform(low, 1), 1.0)[draw.pick(order.resize_probs)]
    mode = MODES[draw.integer(0, 2)]
    gray = draw.chance(order.gray_prob)
    if draw.chance(order.gaussian_prob):
        noise = Noise("gaussian", draw.uniform(*order.noise_sigma), gray)
    else:
        noise = Noise("poisson", draw.uniform(*order.poisson_scale), gray)
    return Pass(blurs, factor, mode, noise, draw.uniform(*order.jpeg_quality))


def draw_released_chain(draw: Draw, frames: int) -> Chain:
    """What the PS-SR release draws: kernels for each frame, no first resize, always Gaussian
    noise, always a second blur, no factor in the second resize, always the last sinc first."""
    passes = []
    for order in (FIRST, SECOND):
        blurs = tuple(draw_blur(draw, order.blur_sigma, order.sinc_prob) for _ in range(frames))
        noise = Noise("gaussian", draw.uniform(*order.noise_sigma), draw.chance(order.gray_prob))
        quality = draw.uniform(*order.jpeg_quality)
        passes.append(Pass(blurs, 1.0, MODES[draw.integer(0, 2)], noise, quality))
    final = tuple(draw_final(draw, FINAL_SINC_PROB) for _ in range(frames))
    return Chain(passes[0], passes[1], final, MODES[draw.integer(0, 2)], True)


def apply_chain(frames: Tensor, chain: Chain, size: tuple[int, int], draw: Draw) -> Tensor:
    """Degrade a clip.

    Args:
        frames: ``[frames, 3, H, W]`` in [0, 1].
        chain: what to do.
        size: height and width of the result.
        draw: where the noise comes from.

    Returns:
        ``[frames, 3, *size]`` in [0, 1], not rounded.
    """
    first, second = chain.first, chain.second
    x = _blur(frames, first.blurs)
    height, width = x.shape[-2:]
    x = _resize(x, (int(height * first.factor), int(width * first.factor)), first.mode)
    x = jpeg(add_noise(x, first.noise, draw), first.quality)
    x = _blur(x, second.blurs)
    x = _resize(x, (int(size[0] * second.factor), int(size[1] * second.factor)), second.mode)
    x = add_noise(x, second.noise, draw)
    if chain.sinc_before_jpeg:
        return jpeg(_blur(_resize(x, size, chain.mode), chain.final), second.quality)
    x = _resize(jpeg(x, second.quality), size, chain.mode)
    return _blur(x, chain.final).clamp(0, 1)


def _blur(frames: Tensor, blurs: tuple[Blur, ...]) -> Tensor:
    if all(blur.shape == "pulse" for blur in blurs):
        return frames
    return filter_frames(frames, torch.stack([blur.kernel() for blur in blurs]))


def _resize(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Without antialiasing, as published: shrinking by interpolation aliases."""
    size = (max(size[0], 1), max(size[1], 1))
    if frames.shape[-2:] == size:
        return frames
    corners = None if mode == "area" else False
    return F.interpolate(frames, size, mode=mode, align_corners=corners)


def add_noise(frames: Tensor, noise: Noise, draw: Draw) -> Tensor:
    """``frames`` ``[frames, 3, H, W]`` in [0, 1] with noise; clamped to [0, 1]."""
    if noise.kind == "gaussian":
        shape = list(frames.shape)
        if noise.gray:
            shape[1] = 1
        grain = draw.normal(shape).to(frames) * (noise.amount / 255)
    else:
        grain = _poisson(frames, noise.gray, draw) * noise.amount
    return (frames + grain).clamp(0, 1)


def _poisson(frames: Tensor, gray: bool, draw: Draw) -> Tensor:
    """Shot noise of 8-bit pictures, as many photons at white as the picture has levels, rounded
    up to a power of two."""
    clean = frames.float().cpu()
    if gray:
        weights = torch.tensor([0.2989, 0.5870, 0.1140]).view(1, 3, 1, 1)
        clean = (clean * weights).sum(1, keepdim=True)
    clean = clean.clamp(0, 1).mul(255).round().div(255)
    photons = torch.tensor([2.0 ** ceil(log2(len(frame.unique()))) for frame in clean])
    rate = clean * photons.view(-1, 1, 1, 1)
    counted = torch.poisson(rate, generator=draw.generator) / photons.view(-1, 1, 1, 1)
    return (counted - clean).to(frames)
