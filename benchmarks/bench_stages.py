"""Each stage of a window by itself: where the time of ``bench_upscaler`` goes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from psssr_fast.config import Sampling, settings_for
from psssr_fast.loading import load_networks
from psssr_fast.ops.frequency_update import update_frequencies
from psssr_fast.pipeline import Networks
from psssr_fast.resize import resize_frames
from psssr_fast.sampling import base_step, draft_steps, make_schedule

FRAMES, HEIGHT, WIDTH = 8, 720, 1280


@dataclass(frozen=True)
class Stage:
    """Inputs of every stage of one window."""

    networks: Networks
    low: Tensor
    picture: Tensor
    latents: Tensor
    condition: Tensor | None

    def resize(self) -> Tensor:
        return resize_frames(self.low, HEIGHT, WIDTH)

    def encode(self) -> Tensor:
        return self.networks.codec.encode(self.picture)[0]

    def base(self) -> Tensor:
        nets, schedule = self.networks, make_schedule(Sampling())
        return base_step(nets.base, self.latents, nets.context, schedule)[0].estimate

    def base_and_drafts(self) -> Tensor:
        nets, sampling = self.networks, Sampling()
        schedule = make_schedule(sampling)
        first, features = base_step(nets.base, self.latents, nets.context, schedule)
        start = first.next_latents
        steps = draft_steps(
            nets.draft, start, self.latents, features, nets.context, schedule, sampling
        )
        return steps[-1].estimate

    def decode(self) -> Tensor:
        return self.networks.codec.decode(self.latents, self.condition)

    def frequency_update(self) -> Tensor:
        unit = (self.picture[0].transpose(0, 1) + 1) / 2
        return update_frequencies(unit, unit.flip(-1), settings_for("released").frequency_update)


@pytest.fixture(scope="module")
def stages() -> Stage:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = load_networks("nano", device).networks
    low = torch.rand(FRAMES, 3, HEIGHT // 4, WIDTH // 4, device=device) * 2 - 1
    picture = resize_frames(low, HEIGHT, WIDTH).transpose(0, 1)[None].to(networks.dtype)
    with torch.no_grad():
        latents, condition = networks.codec.encode(picture)
    return Stage(networks, low, picture, latents, condition)


@pytest.mark.benchmark(group="stages of nano, 8 frames 1280x720")
@pytest.mark.parametrize(
    "name", ["resize", "encode", "base", "base_and_drafts", "decode", "frequency_update"]
)
def bench_stage(benchmark, stages, name):
    def run() -> None:
        with torch.no_grad():
            getattr(stages, name)()
        if stages.low.is_cuda:
            torch.cuda.synchronize()

    benchmark.pedantic(run, warmup_rounds=1, rounds=3)
    median = benchmark.stats.stats.median
    benchmark.extra_info["ms/frame"] = round(1e3 * median / FRAMES, 1)
