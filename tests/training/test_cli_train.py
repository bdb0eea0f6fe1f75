"""``psssr train``: the smoke run that CI relies on, plans, manifests, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from cli_fixtures import Psssr
from training_fixtures import nano_recipe

from psssr_fast.training.recipe import to_json

DATA = Path(__file__).parents[1] / "data"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def psssr(capsys):
    return Psssr(capsys)


@pytest.fixture
def material(tmp_path):
    """Real clips: the example, a photograph, and held-out frames of a film."""
    folder = tmp_path / "material"
    folder.mkdir()
    for file in (EXAMPLES / "demo_180p.mp4", DATA / "photo_256.png"):
        shutil.copy(file, folder)
    return folder


def test_the_smoke_run_learns_in_every_stage(psssr, material, tmp_path):
    manifest, out = tmp_path / "manifest.json", tmp_path / "run"
    done = psssr(
        "train", "--data", material, "--write-manifest", manifest, "--held-out", "*.mp4=8",
        "--licence", "*.mp4=CC BY 3.0", "--licence", "*.png=unrestricted",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = psssr(
        "train", "--smoke", "--data", material, "--manifest", manifest, "--out", out,
        "--device", "cpu", "--show-every", "30", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["schema"] == "psssr.train/1"
    fallen = {(fall["stage"], fall["loss"]) for fall in found["falls"]}
    assert fallen == {
        ("codec", "reconstruction"), ("teacher", "denoising"), ("base", "l2"),
        ("base", "following"), ("base", "discriminator"), ("pixel", "l2"), ("pixel", "pixel"),
        ("draft", "l2"), ("draft", "pixel"),
    }  # fmt: skip
    assert all(fall["last"] < fall["first"] for fall in found["falls"])
    assert found["written"] == [str(out / "nano.safetensors")]
    assert (out / "plot.png").is_file() and (out / "strips/draft_000060.png").is_file()
    again = psssr("train", "--smoke", "--data", material, "--manifest", manifest, "--out", out)
    assert (again.code, "holds a run already" in again.err) == (2, True)


def test_plans_need_no_data(psssr):
    done = psssr("train", "--plan", "--smoke", "--json")
    assert done.code == 0, done.err
    stages = json.loads(done.out)["stages"]
    assert [stage["stage"] for stage in stages] == ["codec", "teacher", "base", "pixel", "draft"]
    assert all(stage["total"] > stage["weights"] > 0 for stage in stages)
    done = psssr("train", "--plan", "--smoke")
    assert "nano: 2 clip(s) of 2x64x64 a process" in done.out and "draft" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--data is needed"),
        (["--data", "{m}"], 2, "--out is needed"),
        (["--data", "{m}", "--out", "{t}/run"], 3, "no licence is recorded for demo_180p.mp4"),
        (["--data", "{t}/no", "--out", "{t}/run"], 3, "no such folder"),
        (["--data", "{m}", "--out", "x", "--licence", "a=b"], 2, "belong to --write-manifest"),
        (["--data", "{m}", "--write-manifest", "x", "--licence", "a"], 2, "PATTERN=VALUE"),
        (["--data", "{m}", "--write-manifest", "x", "--held-out", "a=b"], 2, "PATTERN=FRAMES"),
        (["--data", "{m}", "--write-manifest", "{t}/no/m.json"], 6, "cannot be written"),
        (["--data", "{m}", "--out", "x", "--size", "huge"], 2, "size must be one of "),
        (["--data", "{m}", "--out", "x", "--config", "{t}/no.json"], 2, "cannot be read"),
        (["--data", "{m}", "--out", "{t}/r", "--allow-unlicensed", "--size", "wan2.1-1.3b"], 2,
         "is trained from Wan2.1"),
        (["--data", "{m}", "--out", "{t}/r", "--allow-unlicensed", "--stage", "all",
          "--config", "{t}/lpips.json"], 2, "name them with --lpips FILE"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_an_exit_code(
    psssr, material, tmp_path, arguments, code, message
):
    recipe = nano_recipe(weights=nano_recipe().weights.__class__(), steps=nano_recipe().steps)
    (tmp_path / "lpips.json").write_text(to_json(recipe))
    words = [word.format(m=material, t=tmp_path) for word in arguments]
    done = psssr("train", *words)
    assert done.code == code, done.err
    assert message in done.err
    errors = [line for line in done.err.splitlines() if "error:" in line]
    assert len(errors) == 1
