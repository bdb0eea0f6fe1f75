import torch
from compile_only import Case

from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_into_triton, rms_norm_silu_triton

LAYOUT = torch.channels_last_3d
# Five programs of 256 threads on a multiprocessor, with 12 KiB of loads each
REGISTERS = 48


def _clip(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=LAYOUT)


def _into(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = _clip(shape, dtype)
    ring = _clip((shape[0], shape[1], shape[2] + 2, *shape[3:]), dtype)
    rms_norm_silu_into_triton(x, torch.empty(shape[1], dtype=dtype, device="meta"), ring, 5, True)


def _frame_attention() -> None:
    x = _clip((1, 384, 1, 90, 160), torch.bfloat16)
    rms_norm_silu_triton(x, torch.empty(384, 1, 1, dtype=x.dtype, device="meta"), False)


CASES = [
    Case(
        f"{shape[1]} channels at 720p, {dtype}",
        lambda shape=shape, dtype=dtype: _into(shape, dtype),
        registers=REGISTERS,
    )
    for shape, dtype in [
        ((1, 96, 4, 720, 1280), torch.bfloat16),
        ((1, 192, 4, 360, 640), torch.bfloat16),
        ((1, 384, 2, 180, 320), torch.bfloat16),
        ((1, 96, 4, 720, 1280), torch.float16),
        ((1, 96, 4, 720, 1280), torch.float32),
    ]
] + [Case("norm of the middle attention, bf16", _frame_attention, registers=REGISTERS)]
