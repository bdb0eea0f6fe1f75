"""LPIPS, version 0.1 (Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of
Deep Features as a Perceptual Metric, 2018), with its trained linear layers.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from psssr_fast.metrics.pictures import check_pair, widened
from psssr_fast.metrics.trunk import TRUNKS, Trunk, check_net, load_frozen, read_metric_weights

# The networks were trained on (x - shift) / scale of x in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-20  # under the root: its gradient must be finite where all channels are 0


class Lpips(nn.Module):
    """Distance of two clips in the features of a network: 0 for equal ones, differentiable.

    Gradients flow to the clips that ask for them; the network itself is frozen. Under
    ``torch.autocast`` the convolutions run in its dtype, the distances in fp32.

    Attributes:
        net: ``"alex"`` (what papers report) or ``"vgg"`` (what losses use).
    """

    def __init__(self, net: str = "alex", *, weights: str | Path) -> None:
        """Load a network.

        Args:
            net: ``"alex"`` or ``"vgg"``.
            weights: a safetensors file with ``conv<i>.weight``, ``conv<i>.bias`` and
                ``lin<i>.weight``, or a directory with ``lpips_<net>.safetensors``.

        Raises:
            UsageError: there is no such network.
            ModelError: the weights are missing, damaged, or another network's.
        """
        super().__init__()
        check_net(net)
        self.net = net
        tensors = read_metric_weights(weights, f"lpips_{net}")
        with torch.device("meta"):
            self.trunk = Trunk(TRUNKS[net])
            for index, stage in enumerate(TRUNKS[net].stages):
                self.add_module(f"lin{index}", nn.Conv2d(stage[-1], 1, 1, bias=False))
        load_frozen(self, tensors, weights)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def forward(self, result: Tensor, truth: Tensor) -> Tensor:
        """Distances frame by frame.

        Args:
            result, truth: ``[frames, 3, height, width]`` in [0, 1]; at least 35 pixels wide and
                high for ``alex``, 16 for ``vgg``.

        Returns:
            fp32 ``[frames]``.

        Raises:
            InputError: the clips differ in shape, or are too small.
        """
        check_pair(result, truth)
        total = torch.zeros(len(result), device=result.device)
        pairs = zip(self._features(result), self._features(truth), strict=True)
        for index, (a, b) in enumerate(pairs):
            weights = self.get_parameter(f"lin{index}.weight").flatten()
            # The mean over places first: the layer is linear, and has one channel then.
            total = total + ((_unit(a) - _unit(b)).square().mean((2, 3)) * weights).sum(1)
        return total

    def _features(self, frames: Tensor) -> list[Tensor]:
        normal = (widened(frames) * 2 - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        features: list[Tensor] = self.trunk(normal)
        return features


def _unit(features: Tensor) -> Tensor:
    """Features divided by their length over channels."""
    features = widened(features)
    return features / (features.square().sum(1, keepdim=True) + _EPS).sqrt()
