import pytest
import torch

from psssr_fast.ops.rms_norm_silu import rms_norm_silu, rms_norm_silu_into, rms_norm_silu_ref

# A chunk of the decoder at 720p, at each width it has
SHAPES = [(96, 4, 720, 1280), (192, 4, 360, 640), (384, 2, 180, 320)]


def eager(x, gamma, ring):
    return rms_norm_silu_ref(x, gamma, True)


def fused(x, gamma, ring):
    return rms_norm_silu(x, gamma, True)


def ring_written(x, gamma, ring):
    rms_norm_silu_into(x, gamma, ring, 3, True)


@pytest.mark.parametrize("fn", [eager, fused, ring_written])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_rms_norm_silu(measure, fn, shape, device):
    channels, frames, height, width = shape
    if device.type != "cuda":
        height, width = height // 8, width // 8
    x = torch.randn(1, channels, frames, height, width, dtype=torch.bfloat16, device=device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    ring = (
        x[:, :, :1].repeat(1, 1, frames + 2, 1, 1).contiguous(memory_format=torch.channels_last_3d)
    )
    gamma = torch.randn(channels, dtype=torch.bfloat16, device=device)
    measure(fn, x, gamma, ring, bytes_moved=2 * x.nbytes)
