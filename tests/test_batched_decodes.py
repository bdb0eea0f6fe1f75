"""Both decodes of a window as one batch: the same picture, and where the bits can differ."""

from dataclasses import replace

import pytest
import torch
from model_fixtures import MODELS, in_dtype

from psssr_fast.commands.planned import JobPlanner, PlannedUpscaler, Wishes
from psssr_fast.config import Sampling, settings_for
from psssr_fast.engine import fuse
from psssr_fast.models.sizes import NANO
from psssr_fast.pipeline import restore_window
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.ranges import listening
from psssr_fast.upscaler import Upscaler

TOGETHER = Execution(batched_decodes=True)


@pytest.mark.parametrize("engine", ["plain", "fused"])
@pytest.mark.parametrize("profile", ["released", "paper"])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (5, 40, 56), (7, 33, 47)])
def test_nano_gives_the_same_bits(engine, profile, frames, height, width):
    settings = settings_for(profile)
    networks = in_dtype(MODELS["nano"](), torch.bfloat16)
    if engine == "fused":
        networks = fuse(networks, settings.sampling)
    picture = torch.rand(frames, 3, height, width) * 2 - 1
    in_turn = restore_window(networks, picture, settings)
    assert torch.equal(restore_window(networks, picture, settings, TOGETHER), in_turn)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("profile", ["released", "paper"])
def test_a_batch_is_as_accurate_as_one_after_the_other(model, profile):
    """Root mean square: another order of sums moves the largest of many errors at random."""
    networks, settings = MODELS[model](), settings_for(profile)
    picture = torch.rand(5, 3, 40, 56) * 2 - 1
    exact = restore_window(in_dtype(networks, torch.float64), picture.double(), settings)

    def error(chosen, execution):
        difference = restore_window(chosen, picture, settings, execution) - exact
        return difference.square().mean().sqrt()

    for chosen in (networks, fuse(networks, settings.sampling)):
        assert error(chosen, TOGETHER) <= 2 * error(chosen, Execution())


def decodes(networks, settings, execution) -> int:
    heard: list[str] = []

    class Heard:
        def __init__(self, name):
            heard.append(name)

        def __enter__(self):
            return None

        def __exit__(self, *_):
            return None

    with listening(Heard):
        restore_window(networks, torch.rand(2, 3, 16, 16), settings, execution)
    return heard.count("decode")


def test_estimates_are_decoded_in_pairs():
    networks = MODELS["nano"]()
    released, paper = settings_for("released"), settings_for("paper")
    assert [decodes(networks, released, e) for e in (Execution(), TOGETHER)] == [2, 1]
    assert [decodes(networks, paper, e) for e in (Execution(), TOGETHER)] == [4, 2]
    three = replace(paper, sampling=Sampling(timesteps=(699.0, 599.0, 499.0)))
    assert [decodes(networks, three, e) for e in (Execution(), TOGETHER)] == [3, 2]


@pytest.mark.parametrize(("decodes", "batched"), [("together", True), ("in turn", False)])
def test_the_plan_decides_and_leaves_the_callers_upscaler_alone(
    decodes, batched, monkeypatch, tmp_path
):
    upscaler = Upscaler.from_pretrained(device="cpu", dtype=torch.float32)
    seen = []
    monkeypatch.setattr(
        Upscaler, "upscale_video", lambda self, src, dst, **options: seen.append(self.execution)
    )
    planned = PlannedUpscaler(upscaler, "nano", Wishes(), None)
    plan = JobPlanner.plan
    monkeypatch.setattr(
        JobPlanner, "plan", lambda *arguments: replace(plan(*arguments), decodes=decodes)
    )
    planned.upscale_video("examples/demo_180p.mp4", tmp_path / "out.mp4")
    assert [execution.batched_decodes for execution in seen] == [batched]
    assert not upscaler.execution.batched_decodes


def test_only_a_gpu_is_given_batches(monkeypatch):
    given = {}

    def plan(*arguments, batches, **options):
        given[device.type] = batches

    monkeypatch.setattr("psssr_fast.commands.planned.make_plan", plan)
    monkeypatch.setattr("psssr_fast.commands.planned.free_memory", lambda device: None)
    monkeypatch.setattr("psssr_fast.commands.planned.known_rates", lambda *arguments: None)
    for device in map(torch.device, ("cpu", "cuda")):
        settings = settings_for("released", NANO.windows)
        planner = JobPlanner(NANO, settings, device, torch.bfloat16, "fused", Wishes())

        class Info:
            frames, height, width = 8, 32, 32

        planner.plan(Info, 4.0, None)
    assert given == {"cpu": False, "cuda": True}
