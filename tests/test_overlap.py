"""Reading ahead and writing behind: order, bounds, errors and ends."""

import threading
import time

import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.runtime.clock import IdleClock
from psssr_fast.runtime.overlap import read_ahead, write_behind
from psssr_fast.runtime.ranges import listening, stage


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("psssr-")}


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order(depth):
    assert list(read_ahead(iter(range(100)), depth)) == list(range(100))
    assert threads() == set()


def test_reading_runs_ahead_but_not_further_than_asked():
    fetched = []

    def source():
        for number in range(50):
            fetched.append(number)
            yield number

    reader = read_ahead(source(), depth=4)
    assert next(reader) == 0
    wait_until(lambda: len(fetched) >= 6)  # one taken, four queued, one in hand
    time.sleep(0.3)
    assert len(fetched) == 6
    reader.close()
    assert threads() == set()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_the_source_comes_after_the_items_before_it(depth):
    def source():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="disk is gone"):
        for item in read_ahead(source(), depth):
            seen.append(item)
    assert seen == [1, 2]
    assert threads() == set()


def test_the_source_can_be_closed_once_the_reader_is():
    closed = []

    def source():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    items = source()
    reader = read_ahead(items, depth=2)
    next(reader)
    reader.close()
    items.close()
    assert len(closed) == 1


def test_everything_is_written_in_order_when_the_block_ends():
    written = []

    def slow(item):
        time.sleep(0.002)
        written.append(item)

    with write_behind(slow, depth=4) as write:
        for number in range(50):
            write(number)
    assert written == list(range(50))
    assert threads() == set()


def test_writing_does_not_queue_more_than_asked():
    gate, written = threading.Event(), []

    def blocked(item):
        gate.wait(60)
        written.append(item)

    done = []

    def produce():
        with write_behind(blocked, depth=3) as write:
            for number in range(10):
                write(number)
                done.append(number)

    producer = threading.Thread(target=produce)
    producer.start()
    wait_until(lambda: len(done) == 4)  # three queued, one being written
    time.sleep(0.3)
    assert len(done) == 4
    gate.set()
    producer.join()
    assert written == list(range(10))


@pytest.mark.parametrize("depth", [0, 2])
def test_a_failed_write_stops_the_producer_with_its_error(depth):
    def failing(item):
        if item == 3:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), write_behind(failing, depth) as write:
        for number in range(1000):
            write(number)
    assert threads() == set()


def test_the_last_write_may_fail_too():
    def failing(item):
        time.sleep(0.05)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), write_behind(failing, depth=2) as write:
        write(1)


def test_an_error_of_the_producer_drops_what_is_queued():
    written = []

    def slow(item):
        time.sleep(0.2)
        written.append(item)

    with pytest.raises(ValueError, match="mine"), write_behind(slow, depth=64) as write:
        for number in range(64):  # which would take 13 s
            write(number)
        raise ValueError("mine")
    assert len(written) < 64
    assert threads() == set()


def test_without_queues_all_is_done_in_turn_and_here():
    happened, here = [], threading.current_thread()

    def source():
        for number in range(3):
            happened.append(("read", number, threading.current_thread() is here))
            yield number

    def note(number):
        happened.append(("write", number, threading.current_thread() is here))

    with write_behind(note, depth=0) as write:
        for number in read_ahead(source(), depth=0):
            write(number)
    assert happened == [(what, n, True) for n in range(3) for what in ("read", "write")]


LATE = 0.1  # seconds


def waits_of_six_items(slow, depth):
    """Let ``slow`` take LATE for each of six items, or for the first; what was waited for, and
    how long it all took."""
    count, clock = 6, IdleClock(torch.device("cpu"))

    def pause(where, number=1):
        if slow == where or (slow == "start" and where == "source" and number == 0):
            time.sleep(LATE)

    def source():
        for number in range(count):
            pause("source", number)
            yield number

    begin = time.perf_counter()
    with listening(clock), write_behind(lambda number: pause("writer"), depth) as write:
        for number in read_ahead(source(), depth):
            with stage("encode"):
                pause("computation")
            write(number)
    seconds = time.perf_counter() - begin
    return clock.idle(seconds, depth), seconds, count


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("slow", ["start", "source", "writer", "computation"])
def test_the_thread_in_between_knows_what_it_waited_for(slow, depth):
    """What it need not wait for, it does not wait for in one of some tries: a busy machine adds
    waits, and never takes one away."""
    least = dict.fromkeys(("start", "source", "writer"), 60.0)
    for _ in range(20):
        idle, seconds, count = waits_of_six_items(slow, depth)
        found = {"start": idle.start_s, "source": idle.frames_s, "writer": idle.output_s}
        expected = dict.fromkeys(found, 0.0)
        if slow == "source":
            expected |= {"start": LATE, "source": (count - 1) * LATE}
        elif slow != "computation":
            expected[slow] = LATE if slow == "start" else count * LATE
        for name, waited in found.items():
            assert waited >= 0.9 * expected[name]
            least[name] = min(least[name], waited)
        assert idle.share == pytest.approx(sum(found.values()) / seconds)
        assert 0 <= idle.share <= 1
        assert (idle.device_share, idle.queue_frames) == (None, depth)
        if all(least[name] < LATE for name in found if not expected[name]):
            return
    raise AssertionError(f"waited for {least}, expected {expected}")


def test_a_device_has_a_clock_of_its_own(monkeypatch):
    """Its stages took 0.5 and 0.25 of 2 seconds; nobody waited for it before they were read."""
    times, waits = iter([1.0, 501.0, 700.0, 950.0]), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(times)

        def elapsed_time(self, end):
            assert waits
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = IdleClock(torch.device("cuda"))
    with listening(clock):
        for name in ("encode", "decode"):
            with stage(name):
                assert not waits
    assert clock.idle(2.0, 8).device_share == pytest.approx(1 - 0.75 / 2)


def test_a_queue_of_less_than_nothing_is_refused():
    with pytest.raises(UsageError, match="queue must be 0"):
        next(read_ahead([1], -1))
    with pytest.raises(UsageError, match="got -2"), write_behind(print, -2):
        pass
