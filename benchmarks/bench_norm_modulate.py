import pytest
import torch

from psssr_fast.ops.norm_modulate import norm_modulate, norm_modulate_ref


@pytest.mark.parametrize("fn", [norm_modulate_ref, norm_modulate], ids=["eager", "fused"])
@pytest.mark.parametrize("dim", [1536, 128], ids=["wan", "nano"])
def bench_norm_modulate(measure, fn, dim, device):
    tokens = 28_800 if device.type == "cuda" else 1800  # 29 frames of 720x1280, 180x320
    x = torch.randn(1, tokens, dim, device=device).bfloat16()
    shift, scale = torch.randn(1, 6, dim, device=device).bfloat16()[:, :2].unbind(1)
    measure(fn, x, shift, scale, 1e-6, bytes_moved=2 * x.nbytes)
