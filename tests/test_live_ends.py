"""Live and asynchronous streams one side of which goes away: nobody waits for it."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from contextlib import aclosing
from queue import Full

import pytest
from cli_fixtures import HANGS_AFTER
from live_fixtures import Slow, array, nothing_left_behind, own_threads
from model_fixtures import upscaler
from test_channel import ended, started

from psssr_fast.errors import UsageError
from psssr_fast.live import LiveUpscaler, Progress
from psssr_fast.runtime import overlap
from psssr_fast.runtime.astream import Cancelled, iterate

pytestmark = pytest.mark.usefixtures(nothing_left_behind.__name__)
FRAME = array(1)[0]


def pushing(live: LiveUpscaler, errors: list[BaseException]) -> None:
    """Push until an error comes."""
    try:
        while True:
            live.push(FRAME)
    except Exception as error:
        errors.append(error)


def flushing(live: LiveUpscaler, errors: list[BaseException]) -> None:
    try:
        live.flush()
    except Exception as error:
        errors.append(error)


def until(condition) -> None:
    end = time.monotonic() + HANGS_AFTER
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("wait", [pushing, flushing])
def test_who_waits_is_told_when_another_thread_closes(wait):
    """Even while the stream is still busy with a frame, which the closing thread waits for."""
    stream, errors = Slow(), []
    stream.gate.clear()
    live = LiveUpscaler(stream, queue=1)
    live.push(FRAME)
    waiter = started(wait, live, errors)
    until(lambda: stream.read == 1)
    time.sleep(0.05)  # so that most often it waits already; before that it is told as well
    closer = started(live.close)
    assert ended(waiter) and closer.is_alive()
    stream.gate.set()
    assert ended(closer)
    assert [type(error) for error in errors] == [UsageError]
    assert "closed; make a new one" in str(errors[0])


def early(frames):
    yield next(iter(frames))


def cancelled(frames):
    yield next(iter(frames))
    raise Cancelled


def failing(frames):
    yield next(iter(frames))
    raise ZeroDivisionError("mine")


@pytest.mark.parametrize(
    ("stream", "error"),
    [(early, UsageError), (cancelled, UsageError), (failing, ZeroDivisionError)],
    ids=lambda value: value.__name__,
)
@pytest.mark.parametrize("queue", [1, 8])
def test_no_push_waits_for_a_thread_that_has_ended(stream, error, queue):
    live, errors = LiveUpscaler(stream, queue=queue), []
    assert ended(started(pushing, live, errors))
    assert [type(one) for one in errors] == [error]
    for call in (live.take, live.flush, lambda: live.push(FRAME)):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_a_stream_that_was_given_up_is_not_taken_for_a_finished_one():
    live = LiveUpscaler(cancelled)
    live.push(FRAME)
    with pytest.raises(UsageError, match="closed"):
        live.flush()


@pytest.mark.parametrize("method", ["close", "push", "flush"])
def test_calls_from_the_thread_that_computes_do_not_wait_for_themselves(method):
    errors: list[Exception] = []

    def inside(progress: Progress) -> None:
        try:
            getattr(live, method)(*[FRAME] * (method == "push"))
        except UsageError as error:
            errors.append(error)

    live = upscaler().live(scale=1, queue=2, progress=inside)
    if method == "close":
        assert ended(started(pushing, live, errors))
    else:
        for frame in array(20):
            live.push(frame)
        assert len(live.flush()) <= 20
    live.close()
    assert own_threads() == set()
    message = "closed; make a new one" if method == "close" else "would wait for itself"
    assert message in str(errors[0])


def test_frames_that_two_threads_push_all_come_out():
    done: list = []

    def push():
        for _ in range(30):
            done.extend(live.push(FRAME))

    with LiveUpscaler(Slow(), queue=1) as live:
        assert ended(started(push), started(push))
        done += live.flush()
    assert len(done) == 60


def test_closing_while_the_first_push_starts_the_thread_ends_it(monkeypatch):
    """The other thread looks when no worker is there yet."""
    live = LiveUpscaler(Slow())
    start = threading.Thread.start

    def close_meanwhile(thread):
        monkeypatch.undo()
        live.close()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", close_meanwhile)
    with pytest.raises(UsageError, match="closed"):
        live.push(FRAME)


def test_collecting_garbage_all_the_time_stops_nothing():
    gc.set_threshold(1)
    try:
        with LiveUpscaler(Slow(), queue=2) as live:
            done = [picture for _ in range(40) for picture in live.push(FRAME)] + live.flush()
    finally:
        gc.set_threshold(700, 10, 10)
    assert len(done) == 40


def test_a_flushed_stream_is_forgotten():
    class Stream(Slow):
        pass

    with LiveUpscaler(Slow()) as live:
        streams = [Stream() for _ in range(3)]
        traces = [weakref.ref(stream) for stream in streams]
        for stream in streams:
            live._stream = stream
            live.push(FRAME)
            assert len(live.flush()) == 1
        live._stream = Slow()
        del stream, streams
        gc.collect()
        assert [trace() for trace in traces] == [None] * 3


def test_a_reader_that_its_own_thread_collects_does_not_wait_for_itself(monkeypatch):
    """The garbage collector may run in any thread."""
    problems = []
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    kept = {}

    def source():
        yield 1
        until(lambda: "reader" in kept)
        kept.pop("reader").close()
        yield 2

    reader = overlap.read_ahead(source(), 1)
    assert next(reader) == 1
    kept["reader"] = reader
    del reader
    until(lambda: not own_threads())
    assert problems == []


@pytest.mark.parametrize("when_full", ["wait", "raise"])
def test_a_stream_that_raises_full_is_not_taken_for_a_full_queue(when_full):
    """As of ``progress=queue.put_nowait``, with a queue that nobody empties."""

    def stream(frames):
        for frame in frames:
            yield frame
            raise Full

    live = LiveUpscaler(stream, queue=64, when_full=when_full)
    with pytest.raises(Full):
        until(lambda: live.push(FRAME) is None)
    with pytest.raises(UsageError, match="closed"):
        live.push(FRAME)


# Asynchronous streams.


def blocking(gate: threading.Event):
    """A source that gives a frame, and the next one when the gate opens."""
    yield FRAME
    gate.wait(2 * HANGS_AFTER)
    yield FRAME


def test_a_task_can_be_cancelled_while_an_ordinary_source_gives_nothing():
    gate, stream = threading.Event(), Slow()

    async def run():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async for _ in iterate(stream, blocking(gate)):
                    pass

    begin = time.monotonic()
    try:
        asyncio.run(run())
        assert not gate.is_set() and time.monotonic() - begin < HANGS_AFTER
    finally:
        gate.set()
    until(lambda: stream.closed)  # when its next frame comes


def test_an_error_of_a_source_that_was_left_is_nobody_s(caplog):
    gate = threading.Event()

    def source():
        yield FRAME
        gate.wait(2 * HANGS_AFTER)
        raise OSError("the camera is gone")

    async def run():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async for _ in iterate(Slow(), source()):
                    pass

    asyncio.run(run())
    gate.set()
    until(lambda: not own_threads())
    assert caplog.records == []


def test_a_consumer_that_goes_away_frees_everything():
    stream = Slow()

    async def run():
        async for _ in iterate(stream, iter(array(9))):
            break
        gc.collect()  # the loop is told to close the generator

    asyncio.run(run())
    assert stream.closed


def test_a_loop_that_is_closed_ends_the_thread():
    async def never():
        yield FRAME
        await asyncio.sleep(3600)

    async def first_of(results):
        return await anext(results)

    stream, loop = Slow(), asyncio.new_event_loop()
    results = iterate(stream, never())
    loop.run_until_complete(first_of(results))
    waiting = loop.create_task(first_of(results))
    loop.run_until_complete(asyncio.sleep(0.05))
    assert not waiting.done()
    loop.close()
    until(lambda: stream.closed)
    waiting._log_destroy_pending = False
    del waiting, results
    gc.collect()


def test_closing_early_still_waits_for_a_stage():
    """What is computed ends before the consumer goes on; only a missing frame is not waited for."""
    stream = Slow(0.7)  # longer than the patience with a source

    async def run():
        async with aclosing(iterate(stream, iter(array(9)))) as results:
            async with asyncio.timeout(0.1):
                async for _ in results:
                    pass

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert stream.closed


def test_a_process_ends_though_a_source_gives_nothing():
    program = (
        "import asyncio, threading\n"
        "from psssr_fast.runtime.astream import iterate\n"
        "def source():\n"
        "    yield 1\n"
        "    threading.Event().wait()\n"
        "async def run():\n"
        "    items = iterate(iter_of, source())\n"
        "    print(await anext(items))\n"
        "    async with asyncio.timeout(0.1): await anext(items)\n"
        "def iter_of(items): yield from items\n"
        "try: asyncio.run(run())\n"
        "except TimeoutError: print('left')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANGS_AFTER
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\nleft\n", "")
