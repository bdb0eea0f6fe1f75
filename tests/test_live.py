"""Frames pushed in: the same pictures, bounded, and nothing left behind."""

import gc
import threading
import time
from queue import Full

import numpy as np
import pytest
import torch
from cli_fixtures import write_video
from live_fixtures import PATIENCE, Slow, array, nothing_left_behind, own_threads
from model_fixtures import SMALL, upscaler

from psssr_fast.errors import InputError, UsageError
from psssr_fast.live import LiveUpscaler, Progress

pytestmark = pytest.mark.usefixtures(nothing_left_behind.__name__)


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_pushed_frames_come_back_as_streamed_ones_do(frames):
    up, clip = upscaler(), array(frames)
    with up.live(scale=2) as live:
        done = [picture for frame in clip for picture in live.push(frame)]
        done += live.flush()
    assert np.array_equal(np.stack(done), up(clip, scale=2))


def test_tensors_too():
    up, clip = upscaler(), torch.rand(5, 3, 8, 8)
    with up.live(scale=1) as live:
        done = [picture for frame in clip for picture in live.push(frame)] + live.flush()
    assert torch.equal(torch.stack(done), up(clip, scale=1))


def test_after_a_flush_another_stream_may_be_of_another_size():
    up = upscaler()
    with up.live(scale=1) as live:
        assert live.flush() == []
        for clip in (array(3), array(2, 10, 6)):
            done = [picture for frame in clip for picture in live.push(frame)] + live.flush()
            assert np.array_equal(np.stack(done), up(clip, scale=1))


def test_a_buffer_may_be_used_again_at_once():
    buffer, clip = np.zeros((8, 8, 3), np.uint8), array(6)
    with upscaler().live(scale=1) as live:
        done = []
        for frame in clip:
            buffer[:] = frame
            done += live.push(buffer)
            buffer[:] = 0
        done += live.flush()
    assert np.array_equal(np.stack(done), upscaler()(clip, scale=1))


def test_frames_come_back_while_others_are_pushed():
    up = upscaler()
    with up.live(scale=1) as live:
        pushed = 0
        until = time.monotonic() + PATIENCE
        while not live.push(array(1)[0]):
            pushed += 1
            assert time.monotonic() < until
            time.sleep(0.02)
        assert pushed >= up.lookahead_frames


def test_push_waits_while_the_queue_is_full():
    stream = Slow()
    stream.gate.clear()
    with LiveUpscaler(stream, queue=3) as live:
        done = []

        def push():
            for frame in array(6):
                live.push(frame)
                done.append(frame)

        pusher = threading.Thread(target=push)
        pusher.start()
        until = time.monotonic() + PATIENCE
        while len(done) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(done) == 4  # three wait, one is in the stream
        stream.gate.set()
        pusher.join(PATIENCE)
        assert len(done) == 6


def test_or_says_that_it_is_full():
    stream = Slow()
    stream.gate.clear()
    with LiveUpscaler(stream, queue=2, when_full="raise") as live:
        taken = 0
        with pytest.raises(Full):
            while True:
                live.push(array(1)[0])
                taken += 1
                time.sleep(0.05)
        assert taken == 3
        stream.gate.set()
        until = time.monotonic() + PATIENCE
        while len(live.take()) == 0 and time.monotonic() < until:
            time.sleep(0.01)
        live.push(array(1)[0])  # there is room again


@pytest.mark.parametrize("options", [{"queue": 0}, {"when_full": "drop"}])
def test_impossible_queues_are_refused(options):
    with pytest.raises(UsageError, match=r"queue >= 1 and when_full 'wait' or 'raise'; got queue="):
        upscaler().live(**options)


def test_a_bad_frame_is_refused_and_costs_nothing():
    clip = array(3)
    with upscaler().live(scale=1) as live:
        done = live.push(clip[0])
        with pytest.raises(InputError, match=r"ndarray \[9, 9, 3\] after ndarray \[8, 8, 3\]"):
            live.push(np.zeros((9, 9, 3), np.uint8))
        done += live.push(clip[1]) + live.push(clip[2]) + live.flush()
    assert np.array_equal(np.stack(done), upscaler()(clip, scale=1))


def test_what_goes_wrong_in_the_thread_is_raised_by_the_next_call():
    live = upscaler().live(scale=100)
    with pytest.raises(UsageError, match="the scale must lie between"):
        for frame in array(9):
            live.push(frame)
        live.flush()
    with pytest.raises(UsageError, match="closed; make a new one"):
        live.push(array(1)[0])


def test_a_callback_that_raises_ends_it():
    def stop(progress: Progress) -> None:
        if progress.frames_done == 3:
            raise RuntimeError("enough")

    live = upscaler().live(scale=1, progress=stop)
    with pytest.raises(RuntimeError, match="enough"):
        for frame in array(20):
            live.push(frame)
        live.flush()
    assert own_threads() == set()


def test_leaving_drops_what_is_not_finished_at_once():
    stream = Slow(0.05)
    with LiveUpscaler(stream, queue=64) as live:
        for frame in array(60):
            live.push(frame)
        begin = time.monotonic()
    assert time.monotonic() - begin < PATIENCE
    assert stream.closed and stream.read < 60


def test_leaving_gives_up_in_the_middle_of_a_window(monkeypatch):
    """A window takes minutes on a slow device; it ends at the next stage of the model."""
    import psssr_fast.pipeline as pipeline

    entered, stages = threading.Event(), []
    real = pipeline.stage

    def slow_stage(name):
        stages.append(name)
        entered.set()
        time.sleep(0.3)
        return real(name)

    monkeypatch.setattr(pipeline, "stage", slow_stage)
    with upscaler().live(scale=1) as live:
        for frame in array(12):
            live.push(frame)
        assert entered.wait(PATIENCE)
        begin = time.monotonic()
    assert time.monotonic() - begin < PATIENCE
    assert len(stages) < 5, "the window was finished first"


def test_one_that_is_forgotten_ends_too():
    live = upscaler().live(scale=1)
    live.push(array(1)[0])
    assert own_threads() == {"psssr-live"}
    del live
    gc.collect()  # the fixture looks whether the thread ends


# The plain generator.


def test_progress_counts_the_frames():
    seen: list[Progress] = []
    list(upscaler().stream(array(6), scale=1, progress=seen.append))
    assert [p.frames_done for p in seen] == list(range(1, 7))
    assert all(p.frames_total is None for p in seen)
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)


def test_a_callback_that_raises_ends_the_threads_of_a_file_too(tmp_path):
    """The fixture looks at threads and open files."""
    source = write_video(tmp_path / "in.mp4", frames=20)

    def stop(progress: Progress) -> None:
        if progress.frames_done == 5:
            raise RuntimeError("enough")

    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="enough"):
        upscaler(trained=False).upscale_video(source, tmp_path / "out.mp4", scale=1, progress=stop)
    assert own_threads() == set(), f"still there {time.monotonic() - begin:.1f} s later"
    assert not (tmp_path / "out.mp4").exists()


def test_a_closed_generator_holds_no_frames():
    up, clip = upscaler(), torch.rand(40, 3, 32, 32)

    def floats() -> int:
        gc.collect()
        return sum(
            x.numel() for x in gc.get_objects() if type(x) is torch.Tensor and x.shape[-1:] == (32,)
        )

    before = floats()
    stream = up.stream(clip, scale=1)
    next(stream)
    assert floats() > before
    stream.close()
    assert floats() == before
    assert SMALL.frames < 40
