"""Asynchronous streams: the same pictures, a free event loop, and nothing left behind."""

import asyncio
import time
from contextlib import aclosing

import numpy as np
import pytest
from live_fixtures import PATIENCE, Slow, array, nothing_left_behind, own_threads
from model_fixtures import upscaler

from psssr_fast.live import Progress
from psssr_fast.runtime.astream import iterate

pytestmark = pytest.mark.usefixtures(nothing_left_behind.__name__)


async def paused(clip, seconds=0.0):
    for frame in clip:
        await asyncio.sleep(seconds)
        yield frame


@pytest.mark.parametrize("source", [paused, iter], ids=["asynchronous", "ordinary"])
@pytest.mark.parametrize("frames", [0, 1, 9])
def test_asynchronous_streams_give_the_same(source, frames):
    up, clip = upscaler(), array(frames)

    async def run():
        return [picture async for picture in up.astream(source(clip), scale=2)]

    done, expected = asyncio.run(run()), list(up.stream(clip, scale=2))
    assert len(done) == frames
    assert all(np.array_equal(a, b) for a, b in zip(done, expected, strict=True))


@pytest.mark.parametrize("source", [paused, iter], ids=["asynchronous", "ordinary"])
def test_the_loop_is_never_blocked(source):
    """A stream that sleeps half a second in all lets a ticker tick on."""
    ticks = []

    async def tick():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def run():
        ticker = asyncio.create_task(tick())
        async for _ in iterate(Slow(0.1), source(array(5))):
            pass
        ticker.cancel()

    asyncio.run(run())
    assert len(ticks) > 10
    assert np.median(np.diff(ticks)) < 0.09


def test_a_slow_consumer_holds_the_source_back():
    up, given = upscaler(), []

    async def source():
        for frame in array(40):
            given.append(frame)
            yield frame

    async def run():
        async with aclosing(up.astream(source(), scale=1)) as pictures:
            taken = 0
            async for _ in pictures:
                taken += 1
                await asyncio.sleep(0.01)
                assert len(given) <= taken + up.lookahead_frames
                if taken == 12:
                    break

    asyncio.run(run())
    assert len(given) < 40


@pytest.mark.parametrize("source", [paused, iter], ids=["asynchronous", "ordinary"])
def test_a_cancelled_task_frees_everything(source):
    stream = Slow(0.05)

    async def consume():
        async for _ in iterate(stream, source(array(200))):
            pass

    async def run():
        task = asyncio.create_task(consume())
        while not stream.read:
            await asyncio.sleep(0.01)
        begin = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - begin

    assert asyncio.run(run()) < PATIENCE
    assert stream.closed and 0 < stream.read < 200


def test_cancelling_while_the_source_keeps_one_waiting_frees_everything():
    ended = []

    async def never():
        try:
            yield array(1)[0]
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def run():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                async for _ in upscaler().astream(never(), scale=1):
                    pass
        return own_threads()

    begin = time.monotonic()
    assert asyncio.run(run()) <= {"psssr-astream"}  # it may be ending just now
    assert time.monotonic() - begin < 0.2 + PATIENCE
    assert ended == [True]


def test_cancelling_in_the_middle_of_a_window_gives_up_at_the_next_stage(monkeypatch):
    import psssr_fast.pipeline as pipeline

    stages = []
    real = pipeline.stage

    def slow_stage(name):
        stages.append(name)
        time.sleep(0.3)
        return real(name)

    monkeypatch.setattr(pipeline, "stage", slow_stage)

    async def run():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                async for _ in upscaler().astream(iter(array(12)), scale=1):
                    pass

    asyncio.run(run())
    assert len(stages) < 5


def test_an_early_end_frees_everything():
    stream = Slow()

    async def run():
        async with aclosing(iterate(stream, paused(array(50)))) as results:
            async for _ in results:
                break
        assert stream.closed

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["asynchronous", "ordinary"])
def test_what_the_source_raises_is_raised(kind):
    async def failing_later():
        for frame in array(3):
            yield frame
        raise OSError("the camera is gone")

    def failing():
        yield from array(3)
        raise OSError("the camera is gone")

    async def run():
        source = failing_later() if kind == "asynchronous" else failing()
        async for _ in upscaler().astream(source, scale=1):
            pass

    with pytest.raises(OSError, match="camera is gone"):
        asyncio.run(run())


def test_a_callback_that_raises_ends_an_asynchronous_stream():
    def stop(progress: Progress) -> None:
        raise RuntimeError("enough")

    async def run():
        async for _ in upscaler().astream(iter(array(9)), scale=1, progress=stop):
            pass

    with pytest.raises(RuntimeError, match="enough"):
        asyncio.run(run())


def test_two_streams_can_run_at_once():
    up, clips = upscaler(), [array(7), array(5, 12, 10)]

    async def one(clip):
        return np.stack([picture async for picture in up.astream(paused(clip), scale=1)])

    async def run():
        return await asyncio.gather(*map(one, clips))

    for done, clip in zip(asyncio.run(run()), clips, strict=True):
        assert np.array_equal(done, up(clip, scale=1))
