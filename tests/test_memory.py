"""Memory, open files and threads do not grow with the length of a video, or from job to job."""

import gc
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import HANGS_AFTER, write_video
from model_fixtures import networks

from psssr_fast.config import Windows, settings_for
from psssr_fast.upscaler import Upscaler

DRIVER = Path(__file__).parent / "torture" / "memory.py"


@pytest.fixture(scope="module")
def driver():
    spec = importlib.util.spec_from_file_location("torture_memory", DRIVER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_memory_does_not_grow_from_file_to_file():
    """The smallest thing kept of each frame, the detector's small picture, would be 9 KiB."""
    done = subprocess.run(
        [sys.executable, DRIVER, "--small", "--frames", "3000", "--max-slope", "4096", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=2 * HANGS_AFTER,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 3000


@pytest.fixture
def garbage():
    """``garbage()``: the types of what only Python's search for cycles frees, since it was asked
    for; the search is off meanwhile."""
    gc.collect()
    gc.disable()

    def types():
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return {type(item).__name__ for item in gc.garbage}

    yield types
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def test_a_finished_job_is_freed_at_once(tmp_path, request):
    """Its decoder holds threads and megabytes, and Python looks for cycles when it sees fit: 500
    small jobs in one process grew by 90 KiB each."""
    source = write_video(tmp_path / "in.mp4", 3)
    windows = Windows(4, 64, 64, overlap_frames=1, overlap_pixels=16)
    upscaler = Upscaler(networks(True), settings_for("released", windows), "test", "sdpa", "fused")
    upscaler.upscale_video(source, tmp_path / "warm.mp4", scale=1)
    types = request.getfixturevalue("garbage")
    upscaler.upscale_video(source, tmp_path / "out.mp4", scale=1)
    ours = {"Job", "Order", "Recovery", "VideoReader", "VideoFrame", "VideoCodecContext"}
    assert not types() & ours


def samples(driver, memory=0.0, files=0.0, threads=0.0):
    """Of 1,000 frames, growing by so much each."""
    return [
        driver.Sample(n, int(10**8 + memory * n), int(9 + files * n), int(13 + threads * n))
        for n in range(2, 1001, 2)
    ]


@pytest.mark.parametrize(
    ("grows", "told"),
    [
        ({}, ()),
        ({"memory": 1000}, ()),
        ({"memory": 1100}, ("memory grows by 1100 bytes a frame; 1024 are allowed",)),
        ({"files": 0.01}, ("the number of files grows",)),
        ({"threads": 0.01}, ("the number of threads grows",)),
    ],
    ids=str,
)
def test_the_driver_tells_what_grows(driver, grows, told):
    assert driver.judge(samples(driver, **grows), 1000, 1.0).failures == told


def test_the_driver_tells_of_memory_that_comes_and_goes(driver):
    found = samples(driver)
    found[300] = driver.Sample(602, 10**8 + 65 * 2**20, 9, 13)
    (told,) = driver.judge(found, 1000, 1.0, max_slope=10**9).failures
    assert told == f"memory varies by {65 * 2**20} bytes; {64 * 2**20} are allowed"
