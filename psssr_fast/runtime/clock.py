"""Clocks: of one call, of every stage, and of what the machine can do at all."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from psssr_fast.runtime.ranges import FOR_FRAMES, FOR_OUTPUT

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


@dataclass(frozen=True)
class Idle:
    """How long the thread that computes had nothing to do, from file to file.

    Other threads that decode and encode take their share of a CPU, which is not seen here.

    Attributes:
        start_s: it waited for the frames of the first window.
        frames_s: it waited for frames after that.
        output_s: it waited for room among the frames to be encoded, or at the end for the last.
        share: of the wall-clock time, all three.
        device_share: of the wall-clock time, that in which no stage of a window ran on the device,
            by its own clock; ``None`` on a CPU, where the thread that computes is the device.
        queue_frames: bound of either queue.
    """

    start_s: float
    frames_s: float
    output_s: float
    share: float
    device_share: float | None
    queue_frames: int


class IdleClock:
    """A listener that times what one thread waits for, without making it wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waited = {"start": 0.0, FOR_FRAMES: 0.0, FOR_OUTPUT: 0.0}
        self._ran: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._begun = False

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Time a wait, or a stage on the device."""
        if name in self._waited:
            return self._waiting(name if self._begun or name != FOR_FRAMES else "start")
        self._begun = True
        return self._running() if self._device.type == "cuda" else nullcontext()

    @contextmanager
    def _waiting(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._waited[name] += time.perf_counter() - begin

    @contextmanager
    def _running(self) -> Iterator[None]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._ran.append((begin, end))

    def idle(self, seconds: float, queue_frames: int) -> Idle:
        """What was found in so many seconds."""
        device_share = None
        if self._device.type == "cuda":
            wait_for(self._device)
            ran = sum(begin.elapsed_time(end) for begin, end in self._ran) / 1e3
            device_share = 1 - ran / seconds
        start, frames, output = self._waited.values()
        share = (start + frames + output) / seconds
        return Idle(start, frames, output, share, device_share, queue_frames)


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
