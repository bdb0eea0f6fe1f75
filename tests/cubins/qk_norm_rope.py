import torch
from compile_only import Case

from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton

TOKENS = 28_800  # 29 frames of 720x1280


def _launch(dtype: torch.dtype, dim: int = 1536, heads: int = 12, keys: int = TOKENS) -> None:
    fused = torch.empty(1, TOKENS, 3 * dim, dtype=dtype, device="meta")
    q, k, _ = fused.chunk(3, dim=-1)
    weight = torch.empty(dim, dtype=dtype, device="meta")
    table = torch.empty(TOKENS, dim // heads // 2, device="meta") if keys == TOKENS else None
    qk_norm_rope_triton(q, k[:, :keys], weight, weight, table, table, heads)


# A row of q and one of k to a warp, 128 registers: 16 warps a processor, 6 KiB in flight in each.
CASES = [
    Case("DiT at 720p, bf16", lambda: _launch(torch.bfloat16), registers=128),
    Case("DiT at 720p, fp32", lambda: _launch(torch.float32), registers=168),
    Case("cross-attention, bf16", lambda: _launch(torch.bfloat16, keys=512), registers=128),
    Case("nano at 720p, bf16", lambda: _launch(torch.bfloat16, 128, 4), registers=128),
]
