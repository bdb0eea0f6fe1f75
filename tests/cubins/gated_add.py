import torch
from compile_only import Case

from psssr_fast.kernels.gated_add import gated_add_triton


def _launch(dtype: torch.dtype) -> None:
    x = torch.empty(1, 28_800, 1536, dtype=dtype, device="meta")  # 29 frames of 720x1280
    gated_add_triton(x, x, torch.empty(1, 1536, dtype=dtype, device="meta"))


CASES = [
    Case("DiT at 720p, bf16", lambda: _launch(torch.bfloat16)),
    Case("DiT at 720p, fp32", lambda: _launch(torch.float32)),
]
