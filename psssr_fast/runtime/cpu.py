"""What a CPU computes fastest in: some have bf16 arithmetic, others only emulate it."""

import logging
import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)
MARGIN = 1.2  # bf16 has to be so many times faster to be worth its rounding
ROUNDS = 5


def _workload(dtype: torch.dtype) -> Callable[[], object]:
    """A convolution and a matrix product of the shapes that ``nano`` consists of."""
    picture = torch.randn(1, 48, 90, 160).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(48, 48, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    tokens, weight = torch.randn(2048, 128).to(dtype), torch.randn(384, 128).to(dtype)

    def run() -> None:
        F.conv2d(picture, kernel, padding=1)
        F.linear(tokens, weight)

    return run


def _seconds(run: Callable[[], object]) -> float:
    """The fastest of a few runs: what else the machine does only adds to it."""
    run()
    spent = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begin)
    return min(spent)


@cache
def fastest_dtype() -> torch.dtype:
    """bf16 where this CPU computes it clearly faster than fp32, else fp32.

    Measured once a process, in about a tenth of a second. On ``nano`` bf16 moves pixels by at
    most one 8-bit level.
    """
    with torch.inference_mode():
        wide, narrow = (_seconds(_workload(dtype)) for dtype in (torch.float32, torch.bfloat16))
    chosen = torch.bfloat16 if wide > MARGIN * narrow else torch.float32
    logger.debug("bf16 is %.2f times as fast as fp32 on this CPU: using %s", wide / narrow, chosen)
    return chosen
