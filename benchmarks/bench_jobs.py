"""What a job costs beside its pictures: plan, journal, chunks, checks, syncs and the output."""

import shutil
from pathlib import Path

import pytest

from psssr_fast.config import settings_for
from psssr_fast.jobs import job as jobs
from psssr_fast.jobs.computing import make_plan
from psssr_fast.jobs.plan import Computing
from psssr_fast.video import EncoderSettings, open_reader

CLIP = Path(__file__).parents[1] / "examples/demo_180p.mp4"
CHUNK = 8  # frames: eight chunks of the demo's 64
NO_NETWORKS = Computing(
    "none", "", "float32", "cpu", 1, "none", "plain", "", settings_for("released")
)


def copy(output: Path) -> None:
    """Run a whole job whose pictures are those of its input."""
    with open_reader(CLIP) as reader:
        size = (reader.info.height, reader.info.width)
        encoder = EncoderSettings(preset="ultrafast")
        plan = make_plan(output, reader.info, size, encoder, NO_NETWORKS, CHUNK)
        with jobs.Job(jobs.Order(output, reader, plan)) as job:
            for frame in job.frames():
                job.write(frame)
            job.finish()


@pytest.mark.parametrize("name", ["out.mp4", "out"], ids=["video", "folder"])
def bench_job(benchmark, tmp_path, name):
    output = tmp_path / name

    def set_up():
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        return (output,), {}

    benchmark.pedantic(copy, setup=set_up, rounds=9, warmup_rounds=1)
