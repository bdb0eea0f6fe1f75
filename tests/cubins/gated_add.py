import torch
from compile_only import Case

from psssr_fast.kernels.gated_add import gated_add_triton


def _launch(dtype: torch.dtype, dim: int = 1536) -> None:
    x = torch.empty(1, 28_800, dim, dtype=dtype, device="meta")  # 29 frames of 720x1280
    gates = torch.empty(1, 6, dim, dtype=dtype, device="meta")
    gated_add_triton(x, x, gates[:, 2])


CASES = [
    Case("DiT at 720p, bf16", lambda: _launch(torch.bfloat16), registers=64),
    Case("DiT at 720p, fp32", lambda: _launch(torch.float32), registers=64),
    Case("nano at 720p, fp16", lambda: _launch(torch.float16, 128), registers=64),
]
