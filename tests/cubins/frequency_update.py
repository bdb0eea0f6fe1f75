import torch
from compile_only import Case

from psssr_fast.kernels.frequency_update import frequency_update_triton
from psssr_fast.ops.frequency_update import separable_low_pass


def _launch(dtype: torch.dtype, width: int = 1280, released: bool = False) -> None:
    picture = torch.empty(29, 3, 720, width, dtype=dtype, device="meta")
    frequency_update_triton(
        picture,
        picture,
        *separable_low_pass(0.2, 2),
        strength=1.0,
        literal=released,
        border=2 if released else 0,
        eps=1e-6,
        detail=released,
    )


# Three programs on a multiprocessor; but the values of fp32, and pixels read one by one, take two
# for themselves. Blackwell's compiler keeps a few row numbers on the stack then.
CASES = [
    Case("720p, bf16", lambda: _launch(torch.bfloat16), registers=168),
    Case("720p, fp16", lambda: _launch(torch.float16), registers=168),
    Case("720p, uint8", lambda: _launch(torch.uint8), registers=168),
    Case("720p, literal, detail", lambda: _launch(torch.bfloat16, released=True), registers=168),
    Case("720p, fp32", lambda: _launch(torch.float32), architectures=(80, 90)),
    Case(
        "720p, odd width", lambda: _launch(torch.bfloat16, 1278), wide=False, architectures=(80, 90)
    ),
]
