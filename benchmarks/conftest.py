"""Fixtures that hold every benchmark to one protocol."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def measure(benchmark, device) -> Callable[..., None]:
    """Time ``fn(*arguments)`` to completion after warm-up, and record its bandwidth.

    A CPU repeats what it does more exactly than a GPU, and slower: it gets fewer rounds.
    """
    cuda = device.type == "cuda"

    def run(fn: Callable[..., Tensor], *arguments: object, bytes_moved: int) -> None:
        def call() -> None:
            fn(*arguments)
            if cuda:
                torch.cuda.synchronize()

        benchmark.pedantic(call, warmup_rounds=3 if cuda else 1, rounds=10 if cuda else 5)
        benchmark.extra_info["GB/s"] = round(bytes_moved / benchmark.stats.stats.median / 1e9, 1)
        benchmark.extra_info["device"] = (
            torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
        )

    return run
