"""The whole product: frames in, frames out, on the embedded model."""

import numpy as np
import pytest
import torch

from psssr_fast import Upscaler


@pytest.mark.benchmark(group="upscaler")
@pytest.mark.parametrize("profile", ["released", "paper"])
def bench_nano_320x180_to_1280x720(benchmark, profile, device):
    """Eight frames in memory: windows, all four steps and the frequency-domain update."""
    up = Upscaler.from_pretrained("nano", device=device, profile=profile)
    clip = np.random.default_rng(0).integers(0, 256, (8, 180, 320, 3), np.uint8)
    benchmark.pedantic(up, args=(clip,), warmup_rounds=1, rounds=3)
    benchmark.extra_info["fps"] = round(len(clip) / benchmark.stats.stats.median, 2)
    benchmark.extra_info["device"] = str(device)
    benchmark.extra_info["threads"] = torch.get_num_threads()
