"""Reading ahead and writing behind: order, bounds, errors and ends."""

import threading
import time

import pytest

from psssr_fast.runtime.overlap import read_ahead, write_behind


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("psssr-")}


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_items_come_in_order():
    assert list(read_ahead(iter(range(100)), depth=3)) == list(range(100))
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


def test_an_error_of_the_source_comes_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="disk is gone"):
        for item in read_ahead(source(), depth=2):
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
        gate.wait(10)
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


def test_a_failed_write_stops_the_producer_with_its_error():
    def failing(item):
        if item == 3:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), write_behind(failing, depth=2) as write:
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

    with pytest.raises(ValueError, match="mine"), write_behind(slow, depth=8) as write:
        for number in range(8):
            write(number)
        raise ValueError("mine")
    assert len(written) < 8
    assert threads() == set()
