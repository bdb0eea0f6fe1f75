"""One upscaler in many threads, in forks and in pickles."""

import faulthandler
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import HANGS_AFTER
from model_fixtures import SMALL, networks

from psssr_fast.config import settings_for
from psssr_fast.upscaler import Upscaler

THREADS = 8
SHAPES = [(1, 8, 8), (2, 12, 8), (5, 8, 10), (6, 16, 8), (3, 9, 7), (4, 8, 80)]  # one of two tiles


def clip(number: int) -> np.ndarray:
    shape = (*SHAPES[number % len(SHAPES)], 3)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def fused() -> Upscaler:
    return Upscaler(networks(True), settings_for("released", SMALL), "test", "sdpa", "fused")


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    faulthandler.cancel_dump_traceback_later()
    sys.setswitchinterval(before)


def join_all(threads: list[threading.Thread], results: dict) -> None:
    """Wait for threads; if none has a result for a minute, end the tests with all stacks."""
    seen = -1
    for thread in threads:
        while thread.is_alive():
            if len(results) > seen:
                seen = len(results)
                faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
            thread.join(1)


@pytest.mark.parametrize(("engine", "calls"), [("fused", 25), ("plain", 5)])
def test_threads_get_the_bits_that_they_get_one_after_the_other(engine, calls, hasty):
    """Eight threads on one instance, each with all inputs, in an order of its own."""
    up = Upscaler(networks(True), settings_for("released", SMALL), "test", "sdpa", engine)
    serial = [up(clip(number), scale=1) for number in range(calls)]
    assert len({result.tobytes() for result in serial}) == calls
    fresh = Upscaler(networks(True), settings_for("released", SMALL), "test", "sdpa", engine)
    results: dict[tuple[int, int], np.ndarray] = {}
    ready = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        order = np.random.default_rng(thread).permutation(calls)
        ready.wait(HANGS_AFTER)
        for number in order:
            results[thread, number] = fresh(clip(number), scale=1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    join_all(threads, results)
    assert len(results) == THREADS * calls
    wrong = [key for key, result in results.items() if not np.array_equal(result, serial[key[1]])]
    assert wrong == []


def test_an_upscaler_can_be_pickled():
    up = fused()
    again = pickle.loads(pickle.dumps(up))
    assert np.array_equal(again(clip(2), scale=1), up(clip(2), scale=1))


FORK = """
import os, pickle, sys
import torch
from test_threads import clip, fused
from psssr_fast.errors import UsageError
torch.set_num_threads(2)
up = fused()
expected = up(clip(2), scale=1)
pickled = pickle.dumps(up)

def in_fork(task):
    child = os.fork()
    if child == 0:
        try:
            task()
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def alone():
    torch.set_num_threads(1)
    assert (up(clip(2), scale=1) == expected).all()

def unpickled():
    pickle.loads(pickled)._maker.check(torch.device("cpu"))

print(in_fork(lambda: up(clip(2), scale=1)), in_fork(alone), in_fork(unpickled))
assert (up(clip(2), scale=1) == expected).all()
"""


def test_a_fork_is_refused_where_it_would_hang_and_works_where_it_can():
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
        check=True,
    )
    refusal, codes = done.stdout.splitlines()
    assert refusal.startswith("UsageError this Upscaler was made in process")
    assert "torch's 2 threads cannot be used after a fork" in refusal
    assert refusal.endswith("or call torch.set_num_threads(1) here")
    assert codes == "1 0 0"
