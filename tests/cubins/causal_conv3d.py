import torch
from compile_only import Case

from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton


def _launch(
    cin: int, cout: int, frames: int, height: int, width: int,
    *, residual: bool = False, dtype: torch.dtype = torch.bfloat16, kernel: int = 3,
) -> None:  # fmt: skip
    def clip(channels: int, length: int) -> torch.Tensor:
        memory = torch.empty(1, length, height, width, channels, dtype=dtype, device="meta")
        return memory.permute(0, 4, 1, 2, 3)

    weight = torch.empty(cout, 3, kernel, kernel, cin, dtype=dtype, device="meta")
    bias = torch.empty(cout, dtype=dtype, device="meta")
    causal_conv3d_triton(
        clip(cin, frames + 2), weight.permute(0, 4, 1, 2, 3), bias,
        clip(cout, frames) if residual else None, 5, frames, 2,
    )  # fmt: skip


FULL, HALF, QUARTER, EIGHTH = (4, 720, 1280), (4, 360, 640), (2, 180, 320), (1, 90, 160)
CASES = [
    Case(
        "96 at 1/1, residual",
        lambda: _launch(96, 96, *FULL, residual=True),
        tensor_cores=True,
        tma=True,
    ),
    Case(
        "192 at 1/2, residual",
        lambda: _launch(192, 192, *HALF, residual=True),
        tensor_cores=True,
        tma=True,
    ),
    Case(
        "96 to 192 at 1/2",
        lambda: _launch(96, 192, *HALF),
        tensor_cores=True,
        tma=True,
        architectures=(90,),
    ),
    Case(
        "384 at 1/4, residual, fp16",
        lambda: _launch(384, 384, *QUARTER, residual=True, dtype=torch.float16),
        tensor_cores=True,
        tma=True,
        architectures=(90,),
    ),
    Case(
        "time",
        lambda: _launch(384, 768, *EIGHTH, kernel=1),
        tensor_cores=True,
        tma=True,
        architectures=(80, 90),
    ),
    Case(
        "first, decoder",
        lambda: _launch(16, 384, *EIGHTH),
        tensor_cores=True,
        tma=True,
        architectures=(80, 90),
    ),
    Case("head, encoder", lambda: _launch(384, 32, *EIGHTH), tensor_cores=True, tma=True),
    # Three channels: their loads and stores are narrow, and 8 columns are too few for HGMMA.
    Case("head, decoder", lambda: _launch(96, 3, *FULL), wide=False, tma=True),
    Case("first, encoder", lambda: _launch(3, 96, *FULL), wide=False, tensor_cores=True),
    Case(
        "fp32",
        lambda: _launch(96, 96, *FULL, residual=True, dtype=torch.float32),
        architectures=(80, 90),
    ),
]
