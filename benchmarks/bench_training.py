"""Training on a CPU: how fast clips are made, beside how fast the stages of ``nano`` take them."""

from dataclasses import replace
from pathlib import Path
from time import process_time

import pytest
import torch

from psssr_fast.training.data import Batch, Clips, ClipShape
from psssr_fast.training.degradation import DEGRADATIONS
from psssr_fast.training.manifest import make_manifest
from psssr_fast.training.networks import build
from psssr_fast.training.recipe import Weights, default_recipe
from psssr_fast.training.scene import Scene
from psssr_fast.training.stages import open_stage

DATA = Path(__file__).parents[1] / "tests/data"
SHAPE = ClipShape(frames=4, size=128)
CLIPS = 24


def record(benchmark, call, count):
    """Clips a second, and processor time a clip: the second does not depend on what else runs."""
    before = process_time()
    benchmark.pedantic(call, warmup_rounds=1, rounds=3)
    spent = (process_time() - before) / 4
    benchmark.extra_info["clips/s"] = round(count / benchmark.stats.stats.median, 1)
    benchmark.extra_info["CPU ms/clip"] = round(1000 * spent / count, 1)
    benchmark.extra_info["threads"] = torch.get_num_threads()


@pytest.mark.benchmark(group="training clips 4x128x128")
@pytest.mark.parametrize("name", DEGRADATIONS)
def bench_clips(benchmark, name, tmp_path):
    """A photograph and a film, moved, cut and degraded, in one process."""
    manifest = make_manifest(DATA)
    clips = Clips(manifest, replace(SHAPE, degradation=name), seed=0, cache=tmp_path)
    record(benchmark, lambda: [clips[i] for i in range(CLIPS)], CLIPS)


@pytest.mark.benchmark(group="training step of nano, batch 4 of 4x128x128, fp32")
@pytest.mark.parametrize("name", ["codec", "teacher", "base", "pixel", "draft"])
def bench_step(benchmark, name):
    """Forward and backward of every objective of a stage, without LPIPS."""
    recipe = default_recipe("nano")
    recipe = replace(recipe, clips=SHAPE, weights=Weights(lpips=0), precision="fp32")
    stage = open_stage(name, build(recipe, torch.device("cpu")), recipe)
    shape = (recipe.batch, 3, SHAPE.frames, SHAPE.size, SHAPE.width)
    high, low = torch.rand(shape) * 2 - 1, torch.rand(shape) * 2 - 1
    batch = Batch(high, low, tuple(range(recipe.batch)))

    def step():
        scene = Scene(batch, 0)
        for objective in stage.objectives:
            objective.loss(scene).total.backward()

    record(benchmark, step, recipe.batch)
