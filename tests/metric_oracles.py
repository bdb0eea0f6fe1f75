"""The published definitions of the metrics once more, in NumPy and fp64, to test against.

Written from the papers, with loops and windows where the package uses convolutions.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

Array = NDArray[np.float64]
DATA = Path(__file__).parent / "data"


def photo() -> Array:
    """A photograph, ``[256, 320, 3]`` in [0, 1]."""
    return np.asarray(Image.open(DATA / "photo_256.png").convert("RGB")) / 255.0


def as_clip(*pictures: Array) -> torch.Tensor:
    """Pictures ``[height, width, 3]`` as fp32 ``[frames, 3, height, width]``."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().contiguous()


def blurred(picture: Array, radius: int) -> Array:
    """Mean over a square, edges repeated."""
    edges = [(radius, radius), (radius, radius), (0, 0)]
    size = (2 * radius + 1, 2 * radius + 1)
    return sliding_window_view(np.pad(picture, edges, mode="edge"), size, (0, 1)).mean((-2, -1))


def luma_of(picture: Array) -> Array:
    """MATLAB's ``rgb2ycbcr``, first channel, 16 to 235, of ``[height, width, 3]`` in [0, 1]."""
    return 16 + picture @ np.array([65.481, 128.553, 24.966])


def ssim_of(a: Array, b: Array) -> float:
    """Of two planes, 0 to 255: the formula with variances as mean squared deviations."""
    x = np.arange(11) - 5
    line = np.exp(-(x**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row_a, row_b in zip(
        sliding_window_view(a, (11, 11)), sliding_window_view(b, (11, 11)), strict=True
    ):
        mean_a, mean_b = (row_a * weights).sum((1, 2)), (row_b * weights).sum((1, 2))
        off_a, off_b = row_a - mean_a[:, None, None], row_b - mean_b[:, None, None]
        var_a, var_b = (off_a**2 * weights).sum((1, 2)), (off_b**2 * weights).sum((1, 2))
        both = (off_a * off_b * weights).sum((1, 2))
        values.append(
            (2 * mean_a * mean_b + c1)
            * (2 * both + c2)
            / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
    return float(np.mean(values))


ALEX = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))  # kernel, stride, padding
ALEX_CHANNELS = (64, 192, 384, 256, 256)
VGG_STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)


def random_weights(net: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of LPIPS of a sensible size, from a seed; both signs of bias."""
    generator = torch.Generator().manual_seed(seed)
    if net == "alex":
        shapes = [(channels, edge[0]) for channels, edge in zip(ALEX_CHANNELS, ALEX, strict=True)]
        features = ALEX_CHANNELS
    else:
        shapes = [(channels, 3) for stage in VGG_STAGES for channels in stage]
        features = tuple(stage[-1] for stage in VGG_STAGES)
    tensors, inputs = {}, 3
    for index, (channels, edge) in enumerate(shapes):
        shape = (channels, inputs, edge, edge)
        spread = math.sqrt(2 / (inputs * edge * edge))
        tensors[f"conv{index}.weight"] = torch.randn(shape, generator=generator) * spread
        tensors[f"conv{index}.bias"] = torch.randn(channels, generator=generator) * 0.1
        inputs = channels
    for index, channels in enumerate(features):
        tensors[f"lin{index}.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    return tensors


def write_weights(folder: Path, net: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Put random weights into a directory as users have them, in fp16; what was written."""
    tensors = {name: value.half() for name, value in random_weights(net, seed).items()}
    save_file(tensors, folder / f"lpips_{net}.safetensors")
    return tensors


def numpy_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in tensors.items()}


def convolve(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    """Of ``[channels, height, width]``, with zeros around."""
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding)])
    windows = sliding_window_view(padded, weight.shape[2:], (1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def max_pool(x: Array, edge: int) -> Array:
    return sliding_window_view(x, (edge, edge), (1, 2))[:, ::2, ::2].max((-2, -1))


def energy_pool(x: Array, _: int = 0) -> Array:
    """DISTS: the root of the square under a Hann window without its zeros."""
    line = np.hanning(5)[1:-1]
    kernel = np.outer(line, line) / line.sum() ** 2
    padded = np.pad(x**2, [(0, 0), (1, 1), (1, 1)])
    windows = sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    return np.sqrt((windows * kernel).sum((-2, -1)) + 1e-12)


def features_of(
    x: Array, net: str, weights: Mapping[str, Array], pool: Callable[[Array, int], Array] = max_pool
) -> list[Array]:
    """After the last ReLU of each stage, ``[channels, height, width]``."""
    found, index = [], 0
    stages = [(channels,) for channels in ALEX_CHANNELS] if net == "alex" else VGG_STAGES
    for number, stage in enumerate(stages):
        if net == "alex" and number in (1, 2):
            x = pool(x, 3)
        if net == "vgg" and number:
            x = pool(x, 2)
        for _ in stage:
            stride, padding = ALEX[index][1:] if net == "alex" else (1, 1)
            kernel, bias = weights[f"conv{index}.weight"], weights[f"conv{index}.bias"]
            x = np.maximum(convolve(x, kernel, bias, stride, padding), 0)
            index += 1
        found.append(x)
    return found


def lpips_of(a: Array, b: Array, net: str, weights: Mapping[str, Array]) -> float:
    """Of two pictures ``[height, width, 3]`` in [0, 1]."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    total = 0.0
    features = [
        features_of((((p * 2 - 1) - shift) / scale).transpose(2, 0, 1), net, weights)
        for p in (a, b)
    ]
    for index, (one, two) in enumerate(zip(*features, strict=True)):
        one, two = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in (one, two))
        weight = weights[f"lin{index}.weight"].reshape(-1, 1, 1)
        total += float(((one - two) ** 2 * weight).sum(0).mean())
    return total


def dists_of(a: Array, b: Array, weights: Mapping[str, Array], alpha: Array, beta: Array) -> float:
    """Of two pictures ``[height, width, 3]`` in [0, 1]."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    stacks = []
    for picture in (a, b):
        normal = ((picture - mean) / deviation).transpose(2, 0, 1)
        stacks.append(
            [picture.transpose(2, 0, 1), *features_of(normal, "vgg", weights, energy_pool)]
        )
    score, first = 0.0, 0
    for one, two in zip(*stacks, strict=True):
        for x, y in zip(one, two, strict=True):
            texture = (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
            both = ((x - x.mean()) * (y - y.mean())).mean()
            structure = (2 * both + 1e-6) / (x.var() + y.var() + 1e-6)
            score += alpha[first] * texture + beta[first] * structure
            first += 1
    return 1 - score / (alpha.sum() + beta.sum())


def imresize(plane: Array, scale: float) -> Array:
    """MATLAB's ``imresize`` of a plane: bicubic, antialiased, edges mirrored; any scale below 1."""

    def cubic(x: Array) -> Array:
        x = np.abs(x)
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return near * (x <= 1) + far * ((x > 1) & (x <= 2))

    for _ in range(2):
        size = plane.shape[0]
        rows = []
        for out in range(1, math.ceil(size * scale) + 1):
            centre = out / scale + 0.5 * (1 - 1 / scale)
            places = math.floor(centre - 2 / scale) + np.arange(math.ceil(4 / scale) + 2)
            weights = cubic(scale * (centre - places))
            mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
            rows.append((weights / weights.sum()) @ plane[mirror[(places - 1) % (2 * size)]])
        plane = np.stack(rows).T
    return plane


def fit_of(block: Array) -> tuple[float, float, float]:
    """Asymmetric generalised Gaussian of a block: shape, left and right scale."""
    shapes = np.arange(0.2, 10.001, 0.001)
    gamma = np.vectorize(math.gamma)
    ratios = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    left = math.sqrt(np.mean(block[block < 0] ** 2))
    right = math.sqrt(np.mean(block[block > 0] ** 2))
    ratio = left / right
    wanted = np.mean(np.abs(block)) ** 2 / np.mean(block**2)
    wanted *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = float(shapes[np.argmin((ratios - wanted) ** 2)])
    scale = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    return shape, left * scale, right * scale


def niqe_of(picture: Array, model: Mapping[str, Array]) -> float:
    """Of a picture ``[height, width, 3]`` in [0, 1] that has texture everywhere."""
    plane = np.round(luma_of(picture))
    rows, columns = plane.shape[0] // 96, plane.shape[1] // 96
    plane = plane[: rows * 96, : columns * 96]
    scales = []
    for edge in (96, 48):
        windows = sliding_window_view(np.pad(plane, 3, mode="edge"), (7, 7))
        mean = (windows * model["gaussian_window"]).sum((-2, -1))
        square = (windows**2 * model["gaussian_window"]).sum((-2, -1))
        normal = (plane - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
        blocks = []
        for x in range(columns):
            for y in range(rows):
                block = normal[y * edge : (y + 1) * edge, x * edge : (x + 1) * edge]
                shape, left, right = fit_of(block)
                numbers = [shape, (left + right) / 2]
                for move in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    shape, left, right = fit_of(block * np.roll(block, move, (0, 1)))
                    middle = (right - left) * math.gamma(2 / shape) / math.gamma(1 / shape)
                    numbers += [shape, middle, left, right]
                blocks.append(numbers)
        scales.append(np.array(blocks))
        plane = imresize(plane, 0.5)
    features = np.concatenate(scales, axis=1)
    change = model["mu_pris_param"].ravel() - features.mean(0)
    spread = np.linalg.pinv((model["cov_pris_param"] + np.cov(features, rowvar=False)) / 2)
    return math.sqrt(change @ spread @ change)
