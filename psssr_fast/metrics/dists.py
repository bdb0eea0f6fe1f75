"""DISTS (Ding, Ma, Wang, Simoncelli: Image Quality Assessment: Unifying Structure and Texture
Similarity, 2020).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.metrics.pictures import check_pair, widened
from psssr_fast.metrics.trunk import TRUNKS, Trunk, load_frozen, read_metric_weights

_SHIFT = (0.485, 0.456, 0.406)  # ImageNet's mean and deviation
_SCALE = (0.229, 0.224, 0.225)
_C = 1e-6
_FEATURES = 3 + sum(stage[-1] for stage in TRUNKS["vgg"].stages)


class Dists(nn.Module):
    """Structure and texture distance of two clips: 0 for equal ones.

    The picture itself and five stages of VGG16, with pooling that keeps the local energy (a root
    of a smoothed square), at the pictures' own size: the authors' demo first shrinks them to 256
    pixels, their class does not.
    """

    def __init__(self, *, weights: str | Path, network: str | Path | None = None) -> None:
        """Load the weights of features and the network they are of.

        Args:
            weights: a safetensors file with ``alpha`` and ``beta``, or a directory with
                ``dists_alpha_beta.safetensors``.
            network: VGG16's convolutions, as :class:`Lpips` wants them; default
                ``lpips_vgg.safetensors`` in the directory of ``weights``.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        super().__init__()
        folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
        vgg = read_metric_weights(network or folder, "lpips_vgg")
        tensors = {name: tensor for name, tensor in vgg.items() if name.startswith("conv")}
        tensors |= read_metric_weights(weights, "dists_alpha_beta")
        with torch.device("meta"):
            self.trunk = Trunk(TRUNKS["vgg"])
            self.alpha = nn.Parameter(torch.empty(1, _FEATURES, 1, 1))
            self.beta = nn.Parameter(torch.empty(1, _FEATURES, 1, 1))
        load_frozen(self, tensors, weights)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def forward(self, result: Tensor, truth: Tensor) -> Tensor:
        """Distances frame by frame.

        Args:
            result, truth: ``[frames, 3, height, width]`` in [0, 1], at least 16 pixels wide and
                high.

        Returns:
            fp32 ``[frames]``.

        Raises:
            InputError: the clips differ in shape, or are too small.
        """
        check_pair(result, truth)
        pairs = zip(self._features(result), self._features(truth), strict=True)
        similar = [_similarities(a, b) for a, b in pairs]
        texture, structure = (torch.cat(part, 1) for part in zip(*similar, strict=True))
        alpha, beta = self.alpha.flatten(), self.beta.flatten()
        return 1 - ((texture * alpha).sum(1) + (structure * beta).sum(1)) / (alpha + beta).sum()

    def _features(self, frames: Tensor) -> list[Tensor]:
        frames = widened(frames)
        normal = (frames - self.get_buffer("shift")) / self.get_buffer("scale")
        return [frames, *self.trunk(normal, _energy_pool)]


def _energy_pool(features: Tensor) -> Tensor:
    """Halve by the root of the mean square under a 3x3 Hann window."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=features.dtype, device=features.device)
    channels = features.shape[1]
    kernel = (taps[:, None] * taps).expand(channels, 1, 3, 3)
    square = F.conv2d(features.square(), kernel, stride=2, padding=1, groups=channels)
    return (square + 1e-12).sqrt()


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of means and of the variation around them, per channel: two of ``[frames, channels]``."""
    a, b = widened(a), widened(b)
    mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
    spread = a.var((2, 3), correction=0) + b.var((2, 3), correction=0)
    together = (a * b).mean((2, 3)) - mean_a * mean_b
    texture = (2 * mean_a * mean_b + _C) / (mean_a.square() + mean_b.square() + _C)
    return texture, (2 * together + _C) / (spread + _C)
