"""Recipes: frozen, complete in JSON, and refused in one line where they make no sense."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from training_fixtures import nano_recipe

from psssr_fast.errors import UsageError
from psssr_fast.training.networks import build
from psssr_fast.training.recipe import (
    STAGES,
    Weights,
    default_recipe,
    from_json,
    load_recipe,
    smoke_recipe,
    to_json,
)
from psssr_fast.training.stages import stages_of
from psssr_fast.training.state import differences


def test_the_full_size_has_the_papers_values():
    recipe = default_recipe("wan2.1-1.3b")
    assert recipe.weights == Weights(l2=1, vsd=1, adversarial=0.1, pixel=1, lpips=2)
    assert (recipe.learning_rate, recipe.lora_rank) == (5e-5, 32)
    assert recipe.crop_latents * 8 == 160
    assert recipe.vsd_timesteps == (20, 980)
    clips = recipe.clips
    assert (clips.frames, clips.size, clips.width) == (33, 720, 1280)
    with pytest.raises(FrozenInstanceError):
        recipe.seed = 1


@pytest.mark.parametrize("size", ["nano", "wan2.1-1.3b"])
def test_json_keeps_everything(size, tmp_path):
    recipe = replace(smoke_recipe(size), seed=7, lpips="weights")
    (tmp_path / "recipe.json").write_text(to_json(recipe))
    assert load_recipe(tmp_path / "recipe.json", default_recipe(size)) == recipe
    assert from_json("{}", recipe, "x") == recipe
    changed = from_json('{"steps": {"base": 5}, "seed": 3}', recipe, "x")
    assert changed == replace(recipe, steps=replace(recipe.steps, base=5), seed=3)
    assert differences(to_json(recipe), to_json(changed)) == ["seed", "steps.base"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "x: not JSON"),
        ("[]", "x: needed a table of settings"),
        ({"sed": 1}, "x: no setting 'sed'; known are: batch, "),
        ({"seed": "1"}, "x: seed: got '1'; needed int"),
        ({"weights": {"l3": 1}}, "x: weights: no setting 'l3'"),
        ({"vsd_timesteps": [20]}, "x: vsd_timesteps: got"),
        ({"decay": "linear"}, "x: decay: got 'linear'"),
        ({"start": 5}, "x: start: got 5"),
        ({"size": "large"}, "size must be one of"),
        ({"clips": {"size": 40}}, "multiples of 16 and of the scale 4; got 40"),
        ({"clips": {"degradation": "fog"}}, "degradation must be one of"),
        ({"steps": {"base": -1}}, "must not be negative"),
        ({"ema": 1.0}, "ema must lie in"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"vsd_timesteps": [500, 20]}, "must rise"),
        ({"size": "wan2.1-1.3b", "clips": {"frames": 4}}, "must have 1 frame, or 4 n"),
    ],
)
def test_nonsense_is_refused(content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(UsageError) as refused:
        from_json(text, default_recipe("nano"), "x")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_stages_without_work_are_left_out():
    recipe = nano_recipe()
    models = build(recipe, torch.device("meta"))
    assert stages_of(recipe, models, STAGES) == list(STAGES)
    assert stages_of(recipe, models, ["draft", "base"]) == ["base", "draft"]
    no_vsd = replace(recipe, weights=replace(recipe.weights, vsd=0.0))
    assert "teacher" not in stages_of(no_vsd, build(no_vsd, torch.device("meta")), STAGES)
