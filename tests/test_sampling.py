"""The sampler against the release's tensors, and every reading of it that is a setting."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from psssr_fast.config import Sampling
from psssr_fast.errors import UsageError
from psssr_fast.models.dit import Dit, DitOutput, timestep_embedding
from psssr_fast.models.sizes import DitSize
from psssr_fast.sampling import base_step, draft_steps, make_schedule

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "golden.json").read_text())
SIZE = DitSize(dim=48, ffn_dim=96, heads=2, layers=6, kept_blocks=(2, 5), text_dim=32, freq_dim=32)


class Oracle:
    """A network that knows the answer: ``v = (z_L - z_H) / sigma_base``; remembers its inputs."""

    def __init__(self, low, high, sigma):
        self.velocity = (low - high) / sigma
        self.calls = []

    def prepare_features(self, features):
        return features

    def step(self, latents, timestep, context, features):
        self.calls.append((latents, timestep, context, [f.clone() for f in features]))
        return DitOutput(self.velocity, (torch.ones(1, 2, 3), torch.zeros(1, 2, 3)))


def run_oracle(sampling):
    low, high = torch.randn(2, 1, 16, 2, 4, 6, dtype=torch.float64)
    schedule = make_schedule(sampling)
    base = Oracle(low, high, schedule.sigmas[0])
    draft = Oracle(low, high, schedule.sigmas[0])
    first, features = base_step(base, low, None, schedule)
    steps = draft_steps(draft, first.next_latents, low, features, None, schedule, sampling)
    return low, high, schedule, base, draft, [first, *steps]


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "sampling.safetensors")


@pytest.fixture(scope="module")
def networks():
    """Base with the LoRA merged here, by hand, and draft."""
    weights = load_file(GOLDEN / "foundation_dit.safetensors")
    lora = load_file(GOLDEN / "base_lora.safetensors")
    for name, tensor in lora.items():
        if ".lora_A." in name:
            up = lora[name.replace(".lora_A.", ".lora_B.")]
            weights[name.split(".lora_A.")[0] + ".weight"] += up @ tensor
        elif ".lora_B." not in name:
            weights[name] = tensor
    base, draft = Dit(SIZE), Dit(SIZE, draft=True)
    base.load_state_dict(weights)
    draft.load_state_dict(load_file(GOLDEN / "draft.safetensors"))
    return base.eval(), draft.eval()


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_every_tensor_of_the_release_is_reproduced(networks, golden):
    base, draft = networks
    sampling = Sampling()
    schedule = make_schedule(sampling)
    low, context = golden["lq_latents"], golden["context"]
    with torch.inference_mode():
        first, features = base_step(base, low, context, schedule)
        steps = draft_steps(draft, first.next_latents, low, features, context, schedule, sampling)
    actual = {f"base.feature.{j}": feature for j, feature in enumerate(features)}
    for name, step in zip(["base", "draft.0", "draft.1", "draft.2"], [first, *steps], strict=True):
        actual[f"{name}.velocity"] = step.velocity
        actual[f"{name}.predicted_latents"] = step.estimate
        actual[f"{name}.next_latents"] = step.next_latents
    expected = {k: v for k, v in golden.items() if k not in ("lq_latents", "context")}
    assert actual.keys() == expected.keys()
    worst = {name: relative(actual[name], expected[name]) for name in expected}
    assert max(worst.values()) <= 1e-5, worst


def test_schedule_is_the_releases():
    schedule = make_schedule(Sampling())
    assert list(schedule.timesteps) == FACTS["timesteps_bf16"] == [700, 600, 500, 400]
    assert list(schedule.sigmas[:4]) == pytest.approx(FACTS["sigmas"], rel=1e-7)


def test_unrounded_timesteps_keep_699_and_the_nearest_sigma():
    schedule = make_schedule(Sampling(timestep_rounding="none"))
    assert schedule.timesteps == (699, 599, 499, 399)
    for timestep, sigma in zip(schedule.timesteps, schedule.sigmas, strict=False):
        assert abs(1000 * sigma - timestep) < 0.7  # half the widest gap between two of the 1000


@pytest.mark.parametrize(("rounding", "seen"), [("bf16", 700.0), ("none", 699.0)])
def test_the_base_sees_the_chosen_timestep_in_bf16_too(rounding, seen):
    base = Dit(SIZE).bfloat16().eval()
    embedded = []
    base.time_embedding.register_forward_pre_hook(lambda module, inputs: embedded.append(inputs[0]))
    schedule = make_schedule(Sampling(timestep_rounding=rounding))
    low = torch.randn(1, 16, 1, 4, 4, dtype=torch.bfloat16)
    base_step(base, low, torch.randn(1, 3, 32, dtype=torch.bfloat16), schedule)
    assert torch.equal(
        embedded[0], timestep_embedding(torch.tensor([seen]), SIZE.freq_dim, torch.bfloat16)
    )


def test_exact_velocity_gives_the_high_resolution_latents_at_every_step():
    _, high, _, _, _, steps = run_oracle(Sampling())
    assert len(steps) == 4
    for step in steps:
        torch.testing.assert_close(step.estimate, high, rtol=0, atol=1e-12)


def test_states_lie_on_the_straight_path_from_low_to_high():
    low, high, schedule, _, draft, _ = run_oracle(Sampling())
    for k, (latents, *_) in enumerate(draft.calls, start=1):
        s = schedule.sigmas[k] / schedule.sigmas[0]  # 0.857804, 0.715322, 0.572737
        torch.testing.assert_close(latents[:, :16], high + s * (low - high), rtol=0, atol=1e-12)


def test_base_estimate_does_not_depend_on_the_drafts_schedule():
    torch.manual_seed(1)
    four = run_oracle(Sampling())[-1][0]
    torch.manual_seed(1)
    two = run_oracle(Sampling(timesteps=(699.0, 300.0)))[-1][0]
    assert torch.equal(four.estimate, two.estimate)
    assert not torch.equal(four.next_latents, two.next_latents)


def test_one_timestep_is_the_base_alone():
    *_, draft, steps = run_oracle(Sampling(timesteps=(699.0,)))
    assert len(steps) == 1
    assert draft.calls == []


def test_base_sees_the_low_latents_twice_and_the_draft_state_and_condition():
    low, _, _, base, draft, _ = run_oracle(Sampling())
    assert torch.equal(base.calls[0][0], torch.cat([low, low], dim=1))
    assert len(draft.calls) == 3
    for latents, *_ in draft.calls:
        assert torch.equal(latents[:, 16:], low)


def test_draft_condition_setting_changes_the_second_half_only():
    torch.manual_seed(1)
    draft = run_oracle(Sampling())[4]
    torch.manual_seed(1)
    zeros = run_oracle(Sampling(draft_condition="zeros"))[4]
    for (a, *_), (b, *_) in zip(draft.calls, zeros.calls, strict=True):
        assert torch.equal(a[:, :16], b[:, :16])
        assert not b[:, 16:].any()


def test_features_are_captured_once_and_unchanged_in_every_draft_step():
    *_, base, draft, _ = run_oracle(Sampling())
    assert len(base.calls) == 1
    for _, _, _, features in draft.calls:
        assert torch.equal(features[0], torch.ones(1, 2, 3))
        assert torch.equal(features[1], torch.zeros(1, 2, 3))


def test_real_draft_steps_leave_the_features_unchanged(networks, golden):
    base, draft = networks
    sampling = Sampling()
    schedule = make_schedule(sampling)
    low, context = golden["lq_latents"], golden["context"]
    with torch.inference_mode():
        first, features = base_step(base, low, context, schedule)
        before = [feature.clone() for feature in features]
        draft_steps(draft, first.next_latents, low, features, context, schedule, sampling)
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))


@pytest.mark.parametrize(
    "timesteps", [(), (500.0, 600.0), (0.0,), (1001.0,)], ids=["none", "rising", "zero", "large"]
)
def test_impossible_timesteps_are_refused(timesteps):
    with pytest.raises(UsageError, match="timesteps must fall"):
        Sampling(timesteps=timesteps)
