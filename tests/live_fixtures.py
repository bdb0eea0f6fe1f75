"""What tests of streams share: clips, slow streams, and a look at what is left behind."""

import gc
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

PATIENCE = 60.0  # seconds after which what is not freed is taken for lost, on any machine


def array(frames: int = 9, height: int = 8, width: int = 8) -> np.ndarray:
    """A clip of noise."""
    return np.random.default_rng(3).integers(0, 256, (frames, height, width, 3), np.uint8)


def own_threads() -> set[str]:
    """Names of the threads that we have started."""
    return {t.name for t in threading.enumerate() if t.name.startswith("psssr-")}


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Threads end, and no file stays open."""
    process = psutil.Process()
    before = process.num_fds()
    yield
    until = time.monotonic() + PATIENCE
    while own_threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert own_threads() == set()
    gc.collect()
    assert process.num_fds() <= before


class Slow:
    """A stream that takes its time over each frame, as a model does."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.read, self.closed = seconds, 0, False
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, frames):
        try:
            for frame in frames:
                self.read += 1
                self.gate.wait(PATIENCE)
                time.sleep(self.seconds)
                yield frame
        finally:
            self.closed = True
