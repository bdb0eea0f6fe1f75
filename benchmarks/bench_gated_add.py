import pytest
import torch

from psssr_fast.ops.gated_add import gated_add, gated_add_ref


@pytest.mark.parametrize("fn", [gated_add_ref, gated_add], ids=["eager", "fused"])
def bench_gated_add(measure, fn, device):
    tokens = 28_800 if device.type == "cuda" else 1800  # 29 frames of 720x1280, 180x320
    x, y = torch.randn(2, 1, tokens, 1536, device=device).bfloat16()
    gate = torch.randn(1, 6, 1536, device=device).bfloat16()[:, 2]
    measure(fn, x, y, gate, bytes_moved=3 * x.nbytes)
