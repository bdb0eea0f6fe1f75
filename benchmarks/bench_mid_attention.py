import pytest
import torch

from psssr_fast.ops.mid_attention import mid_attention, mid_attention_ref


@pytest.mark.parametrize("fn", [mid_attention_ref, mid_attention], ids=["eager", "fused"])
@pytest.mark.parametrize("frames", [1, 8])  # latent frames: streaming, a whole clip of 29
def bench_mid_attention(measure, fn, frames, device):
    tokens, dim = (14_400 if device.type == "cuda" else 900), 384  # 720x1280, 180x320
    qkv = torch.randn(frames, tokens, 3 * dim, dtype=torch.bfloat16, device=device)
    q, k, v = qkv.chunk(3, dim=-1)
    measure(fn, q, k, v, bytes_moved=4 * q.nbytes, flops=4 * frames * tokens**2 * dim)
