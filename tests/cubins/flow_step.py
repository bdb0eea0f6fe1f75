import torch
from compile_only import Case

from psssr_fast.kernels.flow_step import flow_step_triton


def _launch(dtype: torch.dtype) -> None:
    latents = torch.empty(1, 16, 8, 90, 160, dtype=dtype, device="meta")  # 29 frames of 720x1280
    flow_step_triton(latents, latents, 0.7, 0.6)


CASES = [
    Case("720p, bf16", lambda: _launch(torch.bfloat16), registers=64),
    Case("720p, fp32", lambda: _launch(torch.float32), registers=64),
]
