import pytest
import torch

from psssr_fast.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_ref


@pytest.mark.parametrize("fn", [qk_norm_rope_ref, qk_norm_rope], ids=["eager", "fused"])
@pytest.mark.parametrize("rotated", [True, False], ids=["self", "cross"])
def bench_qk_norm_rope(measure, fn, rotated, device):
    """Queries and keys of one fused projection; or queries of the clip and keys of the prompt."""
    tokens = 28_800 if device.type == "cuda" else 1800  # 29 frames of 720x1280, 180x320
    q, k, _ = torch.randn(1, tokens, 3 * 1536, device=device).bfloat16().chunk(3, dim=-1)
    weight = torch.ones(1536, device=device).bfloat16()
    angles = torch.rand(tokens, 64, device=device) if rotated else None
    tables = (angles.cos(), angles.sin()) if angles is not None else (None, None)
    k = k if rotated else k[:, :512]
    moved = 2 * (q.numel() + k.numel()) * q.element_size()
    moved += 2 * angles.nbytes if angles is not None else 0
    measure(fn, q, k, weight, weight, *tables, 12, 1e-6, bytes_moved=moved)
