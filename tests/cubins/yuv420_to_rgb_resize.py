import torch
from compile_only import Case

from psssr_fast.kernels.yuv420_to_rgb_resize import yuv420_to_rgb_resize_triton
from psssr_fast.ops._yuv import decoding


def _launch(
    height: int, width: int, dtype: torch.dtype, storage: torch.dtype = torch.uint8
) -> None:
    """29 frames of a ``height`` x ``width`` clip to 720x1280."""
    y = torch.empty(29, height, width, dtype=storage, device="meta")
    u = torch.empty(29, (height + 1) // 2, (width + 1) // 2, dtype=storage, device="meta")
    yuv420_to_rgb_resize_triton(y, u, u, 720, 1280, decoding(1, False, 8), 0.0, dtype)


CASES = [
    Case(
        "x4, bf16",
        lambda: _launch(180, 320, torch.bfloat16),
        registers=184,
        architectures=(80, 90),
    ),
    # ptxas takes more registers there, to fetch further ahead.
    Case(
        "x4, bf16, Blackwell",
        lambda: _launch(180, 320, torch.bfloat16),
        registers=240,
        architectures=(100,),
    ),
    Case(
        "x4 of 10 bits, fp16",
        lambda: _launch(180, 320, torch.float16, torch.int16),
        registers=184,
        architectures=(90,),
    ),
    Case("x4, fp32", lambda: _launch(180, 320, torch.float32), registers=160),
    # Close to 1 the outputs of a thread read the most samples; 16-bit stores are 8 bytes there.
    Case("x1.03, bf16", lambda: _launch(700, 1244, torch.bfloat16), wide=False, registers=168),
]
