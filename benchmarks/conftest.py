"""Fixtures that hold every benchmark to one protocol."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _median_seconds(call: Callable[[], object], cuda: bool) -> float:
    seconds = []
    for _ in range(13 if cuda else 4):
        begin = perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(perf_counter() - begin)
    return median(seconds[3 if cuda else 1 :])


@pytest.fixture(scope="session")
def copy_bandwidth(device) -> float:
    """GB/s, read and written, of copying 1 GiB (64 MiB on a CPU): the yardstick of this run."""
    source = torch.zeros(
        2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    seconds = _median_seconds(lambda: target.copy_(source), device.type == "cuda")
    return 2 * source.nbytes / seconds / 1e9


@pytest.fixture(scope="session")
def gemm_rate(device) -> float:
    """TFLOP/s of an 8192^3 bf16 matrix product (1024^3 fp32 on a CPU): the other yardstick."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _median_seconds(lambda: a @ a, cuda) / 1e12


def count_launches(call: Callable[[], object], cuda: bool) -> int:
    """Kernels that one call puts on the GPU; on a CPU, the outermost operators it runs."""
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as recorded:
        call()
        if cuda:
            torch.cuda.synchronize()
    events = recorded.events() or []
    if cuda:
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    return sum(event.cpu_parent is None for event in events)


@pytest.fixture
def measure(benchmark, device, request) -> Callable[..., None]:
    """Time ``fn(*arguments)`` to completion after warm-up; record rates and launches.

    Rates are also given as fractions of what this device, in this run, copies and multiplies.
    A CPU repeats what it does more exactly than a GPU, and slower: it gets fewer rounds.
    """
    cuda = device.type == "cuda"

    def run(
        fn: Callable[..., Tensor], *arguments: object, bytes_moved: int = 0, flops: int = 0
    ) -> None:
        def call() -> None:
            fn(*arguments)
            if cuda:
                torch.cuda.synchronize()

        benchmark.pedantic(call, warmup_rounds=3 if cuda else 1, rounds=10 if cuda else 5)
        info, seconds = benchmark.extra_info, benchmark.stats.stats.median
        if bytes_moved:
            rate = bytes_moved / seconds / 1e9
            info["GB/s"] = round(rate, 1)
            info["of copy"] = round(rate / request.getfixturevalue("copy_bandwidth"), 3)
        if flops:
            rate = flops / seconds / 1e12
            info["TFLOP/s"] = round(rate, 3)
            info["of GEMM"] = round(rate / request.getfixturevalue("gemm_rate"), 3)
        info["launches"] = count_launches(lambda: fn(*arguments), cuda)
        info["device"] = (
            torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
        )

    return run
