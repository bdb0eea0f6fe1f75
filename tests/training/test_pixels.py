"""Losses of decoded pictures, and what the recipe of the embedded model adds to the paper's."""

from dataclasses import replace

import pytest
import torch
from training_fixtures import nano_recipe, random_batch

from psssr_fast.config import FrequencyUpdate
from psssr_fast.ops.frequency_update import frequency_update_ref
from psssr_fast.training.networks import build
from psssr_fast.training.pixels import LATER, OWN_WEIGHT, Pixels, updated
from psssr_fast.training.recipe import Weights, default_recipe
from psssr_fast.training.scene import Result, Scene
from psssr_fast.training.stages import draft_rollout, open_stage

CPU = torch.device("cpu")
DRAWN_ALIKE = ("from_latents.weight", "blocks.0.conv1.weight", "draw.bias")


def recipe(**changes):
    """That of ``nano`` in small, without LPIPS."""
    weights = replace(default_recipe("nano").weights, lpips=0.0)
    own = {"weights": weights, "pixel_norm": "l1", "draft_pixels": "updated", "crop_latents": 4}
    return replace(nano_recipe(), **{**own, **changes})


def networks(chosen):
    """Of which no layer is zero."""
    torch.manual_seed(0)
    models = build(chosen, CPU)
    for module in models.modules().values():
        for parameter in module.parameters():
            with torch.no_grad():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return models


def moved(module):
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def judged(chosen, picture, truth, seed=0, perceptual=None):
    pixels = Pixels(networks(chosen), chosen, perceptual=False)
    pixels.lpips = perceptual
    found, scene = Result(torch.zeros(()), {}), Scene(random_batch(chosen), seed)
    pixels._judge(found, scene, picture, truth)
    return found


def test_the_update_of_training_is_that_of_the_pipeline():
    base, sharp = (1.2 * (torch.rand(2, 3, 2, 40, 56) * 2 - 1) for _ in range(2))
    found = updated(base, sharp)
    frames = [((x.transpose(1, 2).flatten(0, 1) + 1) / 2).clamp(0, 1) for x in (base, sharp)]
    expected = frequency_update_ref(*frames, FrequencyUpdate())
    inside = found.transpose(1, 2).flatten(0, 1).add(1).div(2).clamp(0, 1)
    torch.testing.assert_close(inside, expected)


def test_drafts_are_judged_behind_the_update_and_leave_the_base_alone():
    chosen = recipe()
    models = networks(chosen)
    stage = open_stage("draft", models, chosen)
    batch = random_batch(chosen)
    for seed in range(6):
        result = stage.objectives[0].loss(Scene(batch, seed))
        assert result.parts.keys() == {"l2", "pixel", "temporal"}
        result.total.backward()
    assert moved(models.codec_module) == {
        f"draft_drawer.{name}" for name, _ in models.codec_module.draft_drawer.named_parameters()
    }
    assert not moved(models.base)
    assert "head.head.weight" in moved(models.draft)


def test_every_draft_step_is_judged_the_last_most_often_and_most_by_lpips():
    class Distance(torch.nn.Module):
        def forward(self, result, truth):
            return torch.ones(len(result))

    weights = Weights(l2=0.0, vsd=0, adversarial=0, lpips=9.0, pixel=1.0)
    chosen = recipe(weights=weights)
    models = networks(chosen)
    models.make_draft()
    with torch.no_grad():  # so that its pictures differ from the base's
        for parameter in models.draft.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        models.codec_module.draft_drawer.draw.bias.add_(0.3 * torch.randn(48))
        batch = random_batch(chosen)
        low, condition = models.codec.encode(batch.low)
        first, steps = draft_rollout(models, low)
        base = models.codec.decode(first.estimate, condition)
        drawn = [models.codec.decode(s.estimate, condition, [True] * len(low)) for s in steps]
        values = [float((updated(base, x) - batch.high).abs().mean()) for x in drawn]
        own = [float((x - batch.high).abs().mean()) for x in drawn]
        pixels, counts = Pixels(models, chosen, perceptual=False), [0, 0, 0]
        pixels.lpips = Distance()
        for seed in range(80):
            scene = Scene(batch, seed)
            found = pixels.updated(scene, first, steps, condition, torch.zeros(()))
            value = float(found.parts["pixel"])
            index = min(range(3), key=lambda i: abs(values[i] - value))
            counts[index] += 1
            total = values[index] + OWN_WEIGHT * own[index] + (index + 1) ** 2
            assert float(found.total) == pytest.approx(total, rel=1e-4)
    shares = [count / 80 - wanted / sum(LATER) for count, wanted in zip(counts, LATER, strict=True)]
    assert max(map(abs, shares)) < 0.17


def test_lpips_looks_at_so_many_frames():
    seen = []

    class Distance(torch.nn.Module):
        def forward(self, result, truth):
            seen.append((result, truth))
            return torch.ones(len(result))

    chosen = recipe(weights=Weights(lpips=3.0, pixel=0.0), lpips_frames=3)
    picture, truth = (torch.rand(2, 3, 4, 16, 16) * 2 - 1 for _ in range(2))
    found = judged(chosen, picture, truth, 5, Distance())
    assert float(found.total) == pytest.approx(3.0)
    results, truths = seen[0]
    assert len(results) == 3
    frames = [(x.transpose(1, 2).flatten(0, 1) + 1) / 2 for x in (picture, truth)]
    places = [int((frames[0] - one).abs().sum((1, 2, 3)).argmin()) for one in results]
    assert len(set(places)) == 3
    torch.testing.assert_close(frames[1][places], truths)


def test_a_picture_that_is_off_by_the_same_all_the_time_does_not_flicker():
    truth = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    chosen = recipe(weights=Weights(pixel=0.0, temporal=1.0))
    assert float(judged(chosen, truth + 0.1, truth).parts["temporal"]) < 1e-6
    flicker = truth + torch.tensor([0.1, -0.1, 0.1, -0.1])[:, None, None]
    assert float(judged(chosen, flicker, truth).parts["temporal"]) == pytest.approx(0.2, rel=1e-4)
    still = judged(chosen, truth[:, :, :1], truth[:, :, :1])  # of one frame there is no change
    assert "temporal" not in still.parts


@pytest.mark.parametrize("known", [0.0, 0.6])
def test_a_codec_learns_on_with_the_base_if_its_own_task_is_kept(known):
    chosen = recipe()
    chosen = replace(chosen, weights=replace(chosen.weights, known=known))
    models = networks(chosen)
    stage, batch = open_stage("pixel", models, chosen), random_batch(chosen)
    totals = set()
    for seed in range(8):
        result = stage.objectives[0].loss(Scene(batch, seed))
        totals.add(round(float(result.total.detach()), 6))
        result.total.backward()
    parts = {name.split(".")[0] for name in moved(models.codec_module)}
    assert parts == ({"read", "encoder", "to_latents", "drawer"} if known else {"drawer"})
    assert len(totals) == (2 if known else 1)  # in every second step, or so
    assert not moved(models.codec_module.draft_drawer)


def test_the_drafts_drawer_begins_as_the_bases():
    models = networks(recipe())
    models.make_draft()
    base, draft = models.codec_module.drawer, models.codec_module.draft_drawer
    for name in DRAWN_ALIKE:
        assert torch.equal(base.get_parameter(name), draft.get_parameter(name))
        assert base.get_parameter(name) is not draft.get_parameter(name)
