"""Decoding in this process, and in a confined one: the same frames."""

import pytest

from psssr_fast.benchmark import write_clip
from psssr_fast.video import open_reader

SIZES = {"320x180, 120 frames": (120, 180, 320), "1280x720, 40 frames": (40, 720, 1280)}


@pytest.mark.benchmark(group="decoding a clip")
@pytest.mark.parametrize("sandbox", [False, True], ids=["here", "confined"])
@pytest.mark.parametrize("size", SIZES)
def bench_sandbox(benchmark, tmp_path, size, sandbox):
    """From opening to the last frame. Of the confined one, the start of Python is the most."""
    source = tmp_path / "in.mp4"
    write_clip(source, *SIZES[size])

    def run():
        with open_reader(source, sandbox=sandbox) as reader:
            return sum(1 for _ in reader)

    assert benchmark.pedantic(run, warmup_rounds=1, rounds=9) == SIZES[size][0]
