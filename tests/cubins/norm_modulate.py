import torch
from compile_only import Case

from psssr_fast.kernels.norm_modulate import norm_modulate_triton


def _launch(dtype: torch.dtype, dim: int = 1536, affine: bool = False) -> None:
    x = torch.empty(1, 28_800, dim, dtype=dtype, device="meta")  # 29 frames of 720x1280
    modulation = torch.empty(1, 6, dim, dtype=dtype, device="meta")
    norm_modulate_triton(x, modulation[:, 0], modulation[:, 1], affine=affine)


# A row to a warp, 96 registers: 20 warps a processor, each with 3 KiB of x in flight.
CASES = [
    Case("DiT at 720p, bf16", lambda: _launch(torch.bfloat16), registers=96),
    Case("DiT at 720p, affine, bf16", lambda: _launch(torch.bfloat16, affine=True), registers=96),
    Case("DiT at 720p, fp32", lambda: _launch(torch.float32), registers=128),
    Case("nano at 720p, bf16", lambda: _launch(torch.bfloat16, 128), registers=96),
    Case("wider than a warp holds, bf16", lambda: _launch(torch.bfloat16, 5120), registers=128),
]
