"""What a CPU computes fastest in: some have bf16 arithmetic, others only emulate it."""

import ctypes
import logging
import sys
import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from psssr_fast.runtime.choices import recall

logger = logging.getLogger(__name__)
MARGIN = 1.2  # bf16 has to be so many times faster to be worth its rounding
ROUNDS = 5
QUESTION = "dtype of nano"
KEPT = 2**30  # bytes; larger blocks go back to the kernel
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


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


def measure_dtypes() -> tuple[torch.dtype, dict[torch.dtype, float]]:
    """The dtype to compute in, and the seconds that one workload took in each."""
    with torch.inference_mode():
        spent = {dtype: _seconds(_workload(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    clearly = spent[torch.float32] > MARGIN * spent[torch.bfloat16]
    return (torch.bfloat16 if clearly else torch.float32), spent


@cache
def fastest_dtype() -> torch.dtype:
    """bf16 where this CPU computes it clearly faster than fp32, else fp32.

    As ``psssr warmup`` found; else measured once a process, in about a tenth of a second. On
    ``nano`` bf16 moves pixels by at most one 8-bit level.
    """
    known = recall(torch.device("cpu")).get(QUESTION)
    for dtype in (torch.float32, torch.bfloat16):
        if known == str(dtype):
            return dtype
    chosen, spent = measure_dtypes()
    ratio = spent[torch.float32] / spent[torch.bfloat16]
    logger.debug("bf16 is %.2f times as fast as fp32 on this CPU: using %s", ratio, chosen)
    return chosen


def keep_freed_memory() -> bool:
    """Have this process keep the memory that tensors give back, for the next ones.

    By default glibc returns large blocks to the kernel and gets them anew, page by page and zeroed,
    which takes a tenth of the time of a window of ``nano``. The price is a higher peak: about a
    fifth. For programs of our own only: it concerns everything in the process.

    Returns:
        Whether it was done: it needs a glibc that lets this be chosen.
    """
    if not sys.platform.startswith("linux"):
        return False
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is None or not choose(_MMAP_THRESHOLD, KEPT):
        return False
    return bool(choose(_TRIM_THRESHOLD, 2**31 - 1))
