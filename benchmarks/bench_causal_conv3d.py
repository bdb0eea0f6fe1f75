"""Each convolution of the VAE: cuDNN in both layouts, generously without padding or residual."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.ops.causal_conv3d import causal_conv3d, pack_conv_weight

from .vae_shapes import VAE_SHAPES, ConvShape

LAYOUT = torch.channels_last_3d


def operands(shape: ConvShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Input with history, weight and bias; channels last. A CPU gets a thousandth of the pixels."""
    cuda = device.type == "cuda"
    dtype, reduced = (torch.bfloat16, 1) if cuda else (torch.float32, 32)
    frames = shape.frames + shape.kernel[0] - 1
    sides = [max(2, side // reduced) for side in (shape.height, shape.width)]
    memory = torch.randn(1, frames, *sides, shape.cin, dtype=dtype, device=device)
    weight = torch.randn(shape.cout, shape.cin, *shape.kernel, dtype=dtype, device=device)
    bias = torch.randn(shape.cout, dtype=dtype, device=device)
    return memory.permute(0, 4, 1, 2, 3), pack_conv_weight(weight), bias


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
    return F.conv3d(x, weight, bias, padding=padding)


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    past = weight.shape[2] - 1
    return causal_conv3d(x, weight, bias, None, past, x.shape[2] - past, past)


@pytest.mark.parametrize("way", ["eager", "eager channels last", "fused"])
@pytest.mark.parametrize(
    "shape", [shape for shape in VAE_SHAPES if not shape.upsample], ids=lambda shape: shape.name
)
def bench_causal_conv3d(measure, shape, way, device):
    x, weight, bias = operands(shape, device)
    if way == "eager":
        x, weight = x.contiguous(), weight.contiguous()
    pixels = x[0, 0].numel() * shape.frames // x.shape[2]
    flops = 2 * pixels * weight.numel()
    moved = x.nbytes + weight.nbytes + pixels * shape.cout * x.itemsize
    measure(fused if way == "fused" else eager, x, weight, bias, flops=flops, bytes_moved=moved)
