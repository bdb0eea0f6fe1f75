"""Clocks: of one call, of every stage, and of what the machine can do at all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

Answer = TypeVar("Answer")


@dataclass
class StageClock:
    """A listener that times stages; waits for the device at both ends of each."""

    device: torch.device
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wait_for(self.device)
        begin = time.perf_counter()
        yield
        wait_for(self.device)
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - begin


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, run: Callable[[], Answer]) -> tuple[Answer, float]:
    """What ``run`` returns, and the seconds it takes, those of its work on the device included."""
    wait_for(device)
    begin = time.perf_counter()
    answer = run()
    wait_for(device)
    return answer, time.perf_counter() - begin


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / _fastest(device, lambda: left @ right)


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy."""
    count = 2**30 if device.type == "cuda" else 2**27
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * count / _fastest(device, lambda: target.copy_(source))


def _fastest(device: torch.device, run: Callable[[], object], rounds: int = 10) -> float:
    run()
    return min(timed(device, run)[1] for _ in range(rounds))
