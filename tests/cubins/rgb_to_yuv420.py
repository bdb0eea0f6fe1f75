import torch
from compile_only import Case

from psssr_fast.kernels.rgb_to_yuv420 import rgb_to_yuv420_triton
from psssr_fast.ops._yuv import encoding


def _launch(dtype: torch.dtype, bits: int) -> None:
    picture = torch.empty(29, 3, 720, 1280, dtype=dtype, device="meta")
    rgb_to_yuv420_triton(picture, encoding(1, False, bits), bits)


# A thread writes as many pixels as it reads in 16 bytes: 8-bit luma in 8 bytes, or 4 from fp32.
CASES = [
    Case("720p, bf16", lambda: _launch(torch.bfloat16, 8), wide=False, registers=80),
    Case("720p, fp16 to 10 bits", lambda: _launch(torch.float16, 10), registers=80),
    Case("720p, fp32", lambda: _launch(torch.float32, 8), wide=False, registers=64),
]
