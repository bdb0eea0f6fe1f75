import torch
from compile_only import Case

from psssr_fast.kernels.upsample_conv2d import upsample_conv2d_triton


def _launch(cin: int, cout: int, height: int, width: int) -> None:
    x = torch.empty(1, 4, height, width, cin, dtype=torch.bfloat16, device="meta")
    phases = torch.empty(4, cout, 2, 2, cin, dtype=torch.bfloat16, device="meta")
    bias = torch.empty(cout, dtype=torch.bfloat16, device="meta")
    upsample_conv2d_triton(x.permute(0, 4, 1, 2, 3), phases.permute(0, 1, 4, 2, 3), bias)


CASES = [
    Case("up to 1/2", lambda: _launch(384, 192, 180, 320), tensor_cores=True, tma=True),
    Case("up to 1/1", lambda: _launch(192, 96, 360, 640), tensor_cores=True, tma=True),
]
