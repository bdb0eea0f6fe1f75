import torch
from compile_only import Case

from psssr_fast.kernels.feature_project import feature_project_triton


def _launch(dtype: torch.dtype, dim: int = 1536) -> None:
    h = torch.empty(1, 28_800, dim, dtype=dtype, device="meta")  # 29 frames of 720x1280
    weight = torch.empty(dim, 2 * dim, dtype=dtype, device="meta")[:, dim:]
    feature_project_triton(h, weight, h)


CASES = [
    Case("DiT at 720p, bf16", lambda: _launch(torch.bfloat16), tensor_cores=True, tma=True),
    Case("nano at 720p, fp16", lambda: _launch(torch.float16, 128), tensor_cores=True, tma=True),
    Case("DiT at 720p, fp32", lambda: _launch(torch.float32), registers=128),
]
