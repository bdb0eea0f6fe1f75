"""Runs: stored, killed, resumed bit for bit, shared between processes, and shown."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_oracles import write_weights
from PIL import Image
from safetensors.torch import load_file
from training_fixtures import nano_recipe

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import InputError, ModelError, UsageError
from psssr_fast.training.data import ClipShape
from psssr_fast.training.export import export
from psssr_fast.training.lora import merged_state
from psssr_fast.training.manifest import make_manifest, write_manifest
from psssr_fast.training.networks import build
from psssr_fast.training.processes import Processes, open_processes
from psssr_fast.training.recipe import Steps, Weights, to_json
from psssr_fast.training.report import psnr, read_log
from psssr_fast.training.smoke import NothingLearnt, falls
from psssr_fast.training.state import load_state
from psssr_fast.training.trainer import Habits, Trainer

DATA = Path(__file__).parents[1] / "data"
CPU = torch.device("cpu")
TOTAL = 3 + 3 + 4 + 3 + 4  # steps of nano_recipe()
START = "from psssr_fast.cli import main; import sys; sys.exit(main())"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The photograph and its manifest."""
    folder = tmp_path_factory.mktemp("material")
    shutil.copy(DATA / "photo_256.png", folder)
    write_manifest(make_manifest(folder, [("*", "Kodak: unrestricted")]), folder / "manifest.json")
    return folder


def trainer(material, folder, recipe=None, **habits):
    recipe = recipe or nano_recipe()
    chosen = Habits(**{"save_every": 2, "show_every": 0, **habits})
    models = build(recipe, CPU)
    return Trainer(recipe, models, make_manifest(material, [("*", "CC0")]), folder, chosen,
                   Processes(CPU), lambda text: None)  # fmt: skip


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory):
    """A whole run, and its trainer."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run = trainer(material, folder, show_every=2)
    run.run()
    return run


def same_state(one, other):
    a, b = load_state(one / "states"), load_state(other / "states")
    assert a.place == b.place and a.tensors.keys() == b.tensors.keys()
    return [name for name in a.tensors if not torch.equal(a.tensors[name], b.tensors[name])]


def losses(folder):
    return [(line["stage"], line["step"], line["losses"]) for line in read_log(folder)]


def test_a_run_keeps_what_it_was_and_shows_what_it_does(finished):
    folder, recipe = finished.folder, finished.recipe
    assert (folder / "recipe.json").read_text() == to_json(recipe)
    assert json.loads((folder / "manifest.json").read_text())["sources"][0]["licence"] == "CC0"
    lines = read_log(folder)
    assert len(lines) == TOTAL
    assert [line["order"] for line in lines] == list(range(1, TOTAL + 1))
    assert set(lines[7]["losses"]) == {"l2", "vsd", "adversarial", "following", "discriminator"}
    shown = {line["stage"] for line in lines if line.get("metrics")}
    assert shown == {"codec", "base", "pixel", "draft"}
    strips = sorted(path.name for path in (folder / "strips").iterdir())
    assert strips[:2] == ["base_000002.png", "base_000004.png"]
    strip = np.array(Image.open(folder / "strips/draft_000004.png"))
    assert strip.shape == (3 * 32 + 14, 3 * 32, 3) and strip.std() > 10
    plot = np.array(Image.open(folder / "plot.png"))
    assert plot.shape[1] == 5 * 420 and (plot != 255).any(2).mean() > 0.005
    assert len(list((folder / "states").iterdir())) == 2


def test_what_a_run_leaves_is_the_average_of_its_weights(finished):
    # decays 0.1, 2/11, 3/12, 4/13 of the four steps of the draft: the last weights count most
    state, draft = load_state(finished.folder / "states"), finished.models.draft
    assert state.place.stage == "draft" and state.place.step == 4
    for name, value in draft.state_dict().items():
        assert torch.equal(state.tensors[f"draft.{name}"].view_as(value), value)
        assert torch.equal(finished._ema[f"draft.{name}"], value)


def test_a_bundle_of_the_run_loads_as_it_was_trained(finished, tmp_path):
    (path,) = export(finished.models, finished.recipe, finished.manifest, tmp_path)
    loaded = load_checkpoint(path)
    for ours, theirs in (
        (merged_state(finished.models.base), loaded.base),
        (finished.models.draft.state_dict(), loaded.draft),
        (finished.models.codec_module.state_dict(), loaded.codec),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(theirs[name], ours[name].half()) for name in ours)


class Stop(Exception):
    """What stops a run in a test."""


@pytest.mark.parametrize("after", [2, 5, 9, 15])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(finished, material, tmp_path, after):
    folder = tmp_path / "run"
    first = trainer(material, folder)
    report, count = first._report, 0

    def stop(*arguments):
        nonlocal count
        report(*arguments)
        count += 1
        if count == after:
            raise Stop

    first._report = stop
    with pytest.raises(Stop):
        first.run()
    trainer(material, folder).run(resume=True)
    assert same_state(folder, finished.folder) == []
    assert losses(folder) == losses(finished.folder)


def test_a_killed_process_is_resumed_by_another_bit_for_bit(finished, material, tmp_path):
    folder, recipe = tmp_path / "run", tmp_path / "recipe.json"
    recipe.write_text(to_json(nano_recipe()))
    command = [
        sys.executable, "-c", START, "train", "--data", material, "--out", folder, "--config",
        recipe, "--save-every", "2", "--show-every", "0", "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)
    while len(read_log(folder)) < 8 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 8 <= len(read_log(folder)) < TOTAL
    done = subprocess.run(
        [*map(str, command), "--resume"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stderr
    assert same_state(folder, finished.folder) == []
    assert losses(folder) == losses(finished.folder)
    assert load_checkpoint(folder / "nano.safetensors").size.name == "nano"


def test_stages_one_by_one_are_the_same_run(finished, material, tmp_path):
    folder = tmp_path / "run"
    trainer(material, folder).run(["codec"])
    trainer(material, folder).run(["teacher", "base", "pixel"], resume=True)
    trainer(material, folder).run(["draft"], resume=True)
    assert same_state(folder, finished.folder) == []


def test_folders_of_other_runs_are_refused(finished, material, tmp_path):
    with pytest.raises(UsageError, match="holds a run already; go on with --resume"):
        trainer(material, finished.folder).run()
    other = nano_recipe(seed=1, steps=Steps(codec=5))
    with pytest.raises(UsageError, match=r"another recipe \(seed, steps\.base, steps\.codec"):
        trainer(material, finished.folder, other).run(resume=True)
    (tmp_path / "states").mkdir()
    (tmp_path / "states/state_000000001.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelError, match="safetensors"):
        trainer(material, tmp_path).run(resume=True)


def test_lpips_is_asked_for_before_the_first_step_and_may_move(material, tmp_path):
    folder, weights = tmp_path / "run", Weights(vsd=0, adversarial=0, lpips=1.0)
    one, other = (tmp_path / name / "lpips_vgg.safetensors" for name in ("a", "b"))
    for path in (one, other):
        path.parent.mkdir()
        write_weights(path.parent, "vgg")

    def run(lpips):
        recipe = nano_recipe(weights=weights, lpips=lpips, lpips_frames=1, batch=1)
        return trainer(material, folder, replace(recipe, clips=ClipShape(frames=1, size=64)))

    with pytest.raises(UsageError, match="name them with --lpips FILE"):
        run(None).run()
    assert not folder.exists()
    run(None).run(["codec", "pixel"])  # these do without
    with pytest.raises(ModelError, match="nowhere"):
        run(str(tmp_path / "nowhere")).run(["draft"], resume=True)
    run(str(one)).run(["draft"], resume=True)
    shutil.rmtree(folder / "states")
    run(str(other)).run(["draft"], resume=True)


def test_a_loss_that_is_no_number_stops_the_run(material, tmp_path):
    run = trainer(material, tmp_path / "run", nano_recipe(learning_rate=1e30, warmup=0))
    with pytest.raises(ModelError, match="a loss is no number at step"):
        run.run()


def test_a_run_that_learns_nothing_fails_its_smoke_test(material, tmp_path):
    folder = tmp_path / "run"
    trainer(material, folder, nano_recipe(learning_rate=0.0, repeat=2)).run(["codec"])
    with pytest.raises(NothingLearnt, match="codec reconstruction"):
        falls(folder)
    with pytest.raises(InputError):
        make_manifest(folder / "states")


def test_psnr_is_of_eight_bit_pictures():
    truth = torch.zeros(1, 3, 2, 8, 8)
    assert psnr(truth + 2 / 255, truth) == pytest.approx(20 * np.log10(255), abs=1e-4)


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"pip install 'psssr_fast\[train\]'"):
        open_processes(CPU)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert open_processes(CPU) == Processes(CPU)


TWO = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training_fixtures import nano_recipe
from psssr_fast.training.manifest import load_manifest
from psssr_fast.training.networks import build
from psssr_fast.training.processes import open_processes
from psssr_fast.training.trainer import Habits, Trainer

cpu = torch.device("cpu")
who, recipe = open_processes(cpu), nano_recipe(batch=1)
assert who.world == 2
models = build(recipe, cpu)
run = Trainer(recipe, models, load_manifest(Path(sys.argv[2])), Path(sys.argv[3]),
              Habits(save_every=100, show_every=0), who, lambda text: None)
run.run()
weights = torch.cat([p.detach().flatten() for p in models.base.parameters()])
gathered = who.accelerator.gather(weights[None])
assert torch.equal(gathered[0], gathered[1])
"""


def test_two_processes_are_one_with_twice_the_batch(finished, material, tmp_path):
    pytest.importorskip("accelerate", reason="several processes need the extra 'train'")
    (tmp_path / "two.py").write_text(TWO)
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         tmp_path / "two.py", tests, material, tmp_path / "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both, alone = losses(tmp_path / "run"), losses(finished.folder)
    assert [line[:2] for line in both] == [line[:2] for line in alone]
    for (_, _, ours), (_, _, theirs) in zip(both[:12], alone[:12], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2, abs=2e-3)
    first = [line[2] for line in both[:3]]
    assert first == [pytest.approx(line[2], rel=1e-4) for line in alone[:3]]


def test_the_states_hold_what_training_changes_and_nothing_else(finished):
    file = sorted((finished.folder / "states").iterdir())[-1]
    names = set(load_file(file))
    assert not any(name.startswith("optimizer") for name in names)  # the stage is over
    assert {name.partition(".")[0] for name in names} == {
        "codec", "base", "teacher", "discriminator", "draft",
    }  # fmt: skip
