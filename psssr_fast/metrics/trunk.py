"""The convolutions of AlexNet and VGG16, whose features perceptual metrics compare."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.errors import InputError, ModelError, UsageError
from psssr_fast.weights_files import read_tensors, read_weight_file, shown

Pool = Callable[[Tensor], Tensor]
_CHANNELS_LAST = torch.channels_last  # twice as fast as planes on a CPU


@dataclass(frozen=True)
class TrunkShape:
    """Which convolutions a network has, and where its features are taken.

    Attributes:
        stages: output channels of the convolutions of each stage; a stage's feature is what its
            last ReLU gives.
        kernels: edge of each convolution's kernel; the padding is half of it.
        first_stride, first_padding: of the first convolution.
        pool_edge: edge of the max pooling with stride 2.
        pooled: the stages that begin with it.
        least: smallest edge of a picture, pixels.
    """

    stages: tuple[tuple[int, ...], ...]
    kernels: tuple[int, ...]
    first_stride: int
    first_padding: int
    pool_edge: int
    pooled: tuple[int, ...]
    least: int


TRUNKS = {
    "alex": TrunkShape(
        stages=((64,), (192,), (384,), (256,), (256,)),
        kernels=(11, 5, 3, 3, 3),
        first_stride=4,
        first_padding=2,
        pool_edge=3,
        pooled=(1, 2),
        least=35,
    ),
    "vgg": TrunkShape(
        stages=((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
        kernels=(3,) * 13,
        first_stride=1,
        first_padding=1,
        pool_edge=2,
        pooled=(1, 2, 3, 4),
        least=16,
    ),
}


class Trunk(nn.Module):
    """The convolutions ``conv0``, ``conv1``, ... of a network, frozen, channels last."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.shape = shape
        inputs, index = 3, 0
        for stage in shape.stages:
            for outputs in stage:
                kernel = shape.kernels[index]
                stride = 1 if index else shape.first_stride
                padding = kernel // 2 if index else shape.first_padding
                conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
                self.add_module(f"conv{index}", conv)
                inputs, index = outputs, index + 1

    def forward(self, pictures: Tensor, pool: Pool | None = None) -> list[Tensor]:
        """Features of all stages, ``[pictures, channels, height, width]`` each.

        Args:
            pictures: ``[pictures, 3, height, width]``, normalised as the network wants it.
            pool: instead of max pooling.

        Raises:
            InputError: the pictures are too small.
        """
        if min(pictures.shape[-2:]) < self.shape.least:
            height, width = pictures.shape[-2:]
            raise InputError(
                f"this metric needs at least {self.shape.least}x{self.shape.least} pixels; got "
                f"{width}x{height}"
            )
        features, index = [], 0
        x = pictures.contiguous(memory_format=_CHANNELS_LAST)
        for number, stage in enumerate(self.shape.stages):
            if number in self.shape.pooled:
                x = pool(x) if pool else F.max_pool2d(x, self.shape.pool_edge, stride=2)
            for _ in stage:
                x = F.relu(self.get_submodule(f"conv{index}")(x))
                index += 1
            features.append(x)
        return features


def read_metric_weights(path: str | Path, name: str) -> dict[str, Tensor]:
    """Tensors of the weights file of a metric, by name, in fp32.

    Args:
        path: the file, or a directory that holds it.
        name: what it is called in a directory, without ``.safetensors``.

    Raises:
        ModelError: it is missing or damaged.
    """
    file = Path(path)
    if os.path.isdir(file):
        file = file / f"{name}.safetensors"
    if not os.path.isfile(file):
        raise ModelError(
            f"{shown(file)}: no such file; the metric's weights {name}.safetensors are needed. "
            "Name their directory with --weights or PSSSR_METRICS_WEIGHTS"
        )
    content = read_weight_file(file)
    return {key: tensor.float() for key, tensor in read_tensors(content, content.tensors)}


def load_frozen(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Put weights into a metric that has a ``trunk`` and was made on the meta device; freeze it.

    Args:
        module: the metric.
        tensors: ``conv<i>`` of its trunk, and its own.
        source: where they are from, for the message.

    Raises:
        ModelError: a tensor is missing, left over, or of another shape.
    """
    state = {
        f"trunk.{name}" if name.startswith("conv") else name: tensors[name] for name in tensors
    }
    wanted = {name: list(value.shape) for name, value in module.state_dict().items()}
    found = {name: list(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        raise ModelError(
            f"{shown(source)}: {shown(wrong[0].removeprefix('trunk.'))} has shape "
            f"{shown(found.get(wrong[0], 'none'))}; needed {wanted.get(wrong[0], 'no such tensor')}"
        )
    for name, tensor in state.items():
        if tensor.ndim == 4:
            state[name] = tensor.contiguous(memory_format=_CHANNELS_LAST)
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def check_net(net: str) -> None:
    """Refuse an unknown network.

    Raises:
        UsageError: it is none of :data:`TRUNKS`.
    """
    if net not in TRUNKS:
        raise UsageError(f"net must be one of {', '.join(TRUNKS)}; got {net!r}")
