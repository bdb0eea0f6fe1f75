import pytest
import torch

from psssr_fast.ops.upsample_conv2d import (
    pack_upsample_weight,
    upsample_conv2d,
    upsample_conv2d_ref,
)

from .vae_shapes import VAE_SHAPES


@pytest.mark.parametrize("fn", [upsample_conv2d_ref, upsample_conv2d], ids=["eager", "fused"])
@pytest.mark.parametrize(
    "shape", [shape for shape in VAE_SHAPES if shape.upsample], ids=lambda shape: shape.name
)
def bench_upsample_conv2d(measure, shape, fn, device):
    """FLOP are those of the convolution of the doubled picture: the kernel does 4/9 of them."""
    cuda = device.type == "cuda"
    dtype, reduced = (torch.bfloat16, 1) if cuda else (torch.float32, 32)
    sides = [max(2, side // reduced) for side in (shape.height, shape.width)]
    memory = torch.randn(1, shape.frames, *sides, shape.cin, dtype=dtype, device=device)
    weight = torch.randn(shape.cout, shape.cin, 3, 3, dtype=dtype, device=device)
    bias = torch.randn(shape.cout, dtype=dtype, device=device)
    pixels = 4 * memory[..., 0].numel()
    moved = memory.nbytes + weight.nbytes + pixels * shape.cout * memory.itemsize
    x, phases = memory.permute(0, 4, 1, 2, 3), pack_upsample_weight(weight)
    measure(fn, x, weight, bias, phases, flops=2 * pixels * weight.numel(), bytes_moved=moved)
