import torch
from compile_only import Case

from psssr_fast.kernels.mid_attention import mid_attention_triton


def _launch(dim: int, dtype: torch.dtype) -> None:
    qkv = torch.empty(1, 14_400, 3 * dim, dtype=dtype, device="meta")  # a latent frame at 720p
    mid_attention_triton(*qkv.chunk(3, dim=-1))


# 384 is Wan's; small models have narrower pieces
CASES = [
    Case(
        f"dim {dim} at 720p, {dtype}",
        lambda dim=dim, dtype=dtype: _launch(dim, dtype),
        tensor_cores=True,
        tma=True,
    )
    for dim, dtype in [
        (384, torch.bfloat16),
        (384, torch.float16),
        (64, torch.bfloat16),
    ]
]
