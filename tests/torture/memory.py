"""Whether memory stays constant in the length of a video, and from job to job.

Encodes a video, upscales it from file to file with small networks, and looks at the process every
few frames, or after every job: memory, open files, threads. Exits with 1 if memory grows.

    python tests/torture/memory.py                # 20,000 frames 176x144
    python tests/torture/memory.py --frames 1500 --small    # 96x80, and a quick encoder
    python tests/torture/memory.py --jobs 500     # of 3 frames each; judged from job 200 on
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import psutil

if TYPE_CHECKING:
    from psssr_fast.config import Windows
    from psssr_fast.upscaler import Upscaler

ROOT = Path(__file__).parents[1]
SIZE, SMALL = (176, 144), (96, 80)  # width, height
SCENE = 125  # frames from cut to cut
KIB, MIB = 2**10, 2**20
MAX_SLOPE = 1 * KIB  # bytes a frame, over the last 80 %; in short runs noise is more than that
MAX_RANGE = 64 * MIB  # over the last 80 %
SAMPLES = 500


@dataclass(frozen=True, slots=True)
class Sample:
    """The process after ``frame`` frames, or jobs: bytes in memory, open files, threads."""

    frame: int
    memory: int
    files: int
    threads: int


@dataclass(frozen=True)
class Result:
    """What was seen over the last 80 % of the frames, or 60 % of the jobs; sizes in bytes.

    Attributes:
        slope: of the memory, a frame, fitted by least squares.
        spread: highest less lowest memory.
        peak: highest memory, at any time.
        files, threads: lowest and highest number.
        failures: what is not as it should be.
    """

    frames: int
    seconds: float
    slope: float
    spread: int
    peak: int
    files: tuple[int, int]
    threads: tuple[int, int]
    failures: tuple[str, ...]


def make_video(path: Path, frames: int, size: tuple[int, int]) -> None:
    """A moving pattern with grain, and another one after every cut."""
    width, height = size
    grain = np.random.default_rng(0).integers(0, 24, (height + 16, width + 16, 3), np.uint8)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            scene = index // SCENE
            wave = np.sin(x / (5 + scene % 7) + index / 9) * np.cos(y / (4 + scene % 5))
            base = 40 + 140 * (scene % 2) + 35 * wave
            row, column = index % 16, index * 7 % 16
            noise = grain[row : row + height, column : column + width]
            pixels = base[..., None].astype(np.uint8) + noise
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def watch(source: Path, output: Path, frames: int, size: tuple[int, int]) -> list[Sample]:
    """Upscale, and sample the process."""
    from psssr_fast.config import Windows
    from psssr_fast.video import EncoderSettings

    windows = Windows(8, size[1], size[0], overlap_frames=1, overlap_pixels=8)
    encoder = EncoderSettings(preset="medium" if size == SIZE else "ultrafast")
    every, samples = max(1, frames // SAMPLES), []

    def look(progress) -> None:
        if progress.frames_done % every == 0:
            samples.append(sample(progress.frames_done))

    report = upscaler(windows).upscale_video(
        source, output, scale=1, encoder=encoder, progress=look
    )
    assert report.frames == frames, f"{report.frames} of {frames} frames came out"
    return samples


def watch_jobs(source: Path, output: Path, jobs: int) -> list[Sample]:
    """Upscale a short video again and again, and sample the process after each.

    Garbage is collected before each sample, so that Python's lists of free objects, which fill
    for some hundred jobs, are empty; and there must be next to none, since it holds decoders.
    """
    from psssr_fast.config import Windows
    from psssr_fast.video import EncoderSettings

    made = upscaler(Windows(4, 64, 64, overlap_frames=1, overlap_pixels=16))
    samples = []
    gc.disable()
    for number in range(1, jobs + 1):
        made.upscale_video(source, output, scale=1, encoder=EncoderSettings(preset="ultrafast"))
        output.unlink()
        garbage = gc.collect()
        assert number < 3 or garbage < 100, f"job {number} left {garbage} objects to collect"
        samples.append(sample(number))
    return samples


def upscaler(windows: "Windows") -> "Upscaler":
    """Make one with small networks."""
    from model_fixtures import networks

    from psssr_fast.config import settings_for
    from psssr_fast.upscaler import Upscaler

    return Upscaler(networks(True), settings_for("released", windows), "test", "sdpa", "fused")


def sample(number: int) -> Sample:
    """Look at this process."""
    process = psutil.Process()
    return Sample(number, process.memory_info().rss, process.num_fds(), process.num_threads())


def judge(
    samples: list[Sample],
    frames: int,
    seconds: float,
    max_slope: float = MAX_SLOPE,
    warm: float = 0.2,
) -> Result:
    """What the samples say.

    Args:
        samples: of the process.
        frames: or jobs, how many there were.
        seconds: that they took.
        max_slope: bytes a frame, or a job.
        warm: share of the frames after which memory must not grow.
    """
    late = [sample for sample in samples if sample.frame > warm * frames]
    memory = [sample.memory for sample in late]
    slope = float(np.polyfit([sample.frame for sample in late], memory, 1)[0])
    spread = max(memory) - min(memory)
    files = min(s.files for s in late), max(s.files for s in late)
    threads = min(s.threads for s in late), max(s.threads for s in late)
    failures = []
    middle = len(late) // 2
    if slope > max_slope:
        failures.append(f"memory grows by {slope:.0f} bytes a frame; {max_slope:g} are allowed")
    if spread > MAX_RANGE:
        failures.append(f"memory varies by {spread} bytes; {MAX_RANGE} are allowed")
    for name in ("files", "threads"):
        counts = [getattr(sample, name) for sample in late]
        # The least: where chunks meet, there are the threads of two encoders for a moment. And
        # one more than at first, which may have been begun late, is no growth.
        if min(counts[middle:]) > min(counts[:middle]) + 1:
            failures.append(f"the number of {name} grows")
    peak = max(sample.memory for sample in samples)
    return Result(frames, seconds, slope, spread, peak, files, threads, tuple(failures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, help="so many jobs of 3 frames, instead of one job")
    parser.add_argument("--max-slope", type=float, default=MAX_SLOPE, metavar="BYTES")
    parser.add_argument("--small", action="store_true", help="small pictures, encoded quickly")
    parser.add_argument("--json", action="store_true", help="print a document instead of a line")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in.mp4"), Path(folder, "out.mp4")
        size = SMALL if arguments.small or arguments.jobs else SIZE
        make_video(source, 3 if arguments.jobs else arguments.frames, size)
        begin = time.monotonic()
        if arguments.jobs:
            samples, count, warm = watch_jobs(source, output, arguments.jobs), arguments.jobs, 0.4
        else:
            count, warm = arguments.frames, 0.2
            samples = watch(source, output, count, size)
        seconds = time.monotonic() - begin
        result = judge(samples, count, seconds, arguments.max_slope, warm)
    if arguments.json:
        print(json.dumps(asdict(result)))
    else:
        unit = "job" if arguments.jobs else "frame"
        print(
            f"{unit}s={result.frames} slope={result.slope:.1f}B/{unit} "
            f"range={result.spread / MIB:.1f}MiB peak={result.peak / MIB:.0f}MiB "
            f"files={result.files[0]}-{result.files[1]} "
            f"threads={result.threads[0]}-{result.threads[1]} seconds={result.seconds:.0f}"
        )
    for failure in result.failures:
        print(failure, file=sys.stderr)
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
