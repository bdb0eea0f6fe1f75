"""From file to file with queues between decoder, networks and encoder, and without."""

import pytest

from psssr_fast import Upscaler
from psssr_fast.benchmark import SCALE, write_clip
from psssr_fast.runtime.clock import IdleClock
from psssr_fast.runtime.ranges import listening
from psssr_fast.upscaler import QUEUE


@pytest.mark.benchmark(group="nano, 31 frames from file to file, 160x88 to 640x352")
@pytest.mark.parametrize("queue", [0, QUEUE], ids=["in turn", "overlapped"])
def bench_overlap(benchmark, device, tmp_path, queue):
    """The second row over the first is what overlapping gains; without queues, what the thread
    that computes waits for is all that decoding and encoding take."""
    up = Upscaler.from_pretrained("nano", device=device)
    up.queue = queue
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source, 31, 88, 160)
    found = []

    def run():
        clock = IdleClock(device)
        with listening(clock):
            report = up.upscale_video(source, target, scale=SCALE, overwrite=True)
        found.append(clock.idle(report.seconds, queue))

    benchmark.pedantic(run, warmup_rounds=1, rounds=3)
    waited = sorted(found[1:], key=lambda idle: idle.share)[1]
    benchmark.extra_info["device"] = str(device)
    benchmark.extra_info["waited"] = round(waited.share, 3)
    benchmark.extra_info["for frames, s"] = round(waited.start_s + waited.frames_s, 3)
    benchmark.extra_info["for output, s"] = round(waited.output_s, 3)
