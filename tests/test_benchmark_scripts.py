"""The scripts beside the benchmarks run to their end, at a small size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts import their neighbours
from gpu_suite import PARTS, Part, run_part  # noqa: E402
from vae_shapes import VAE_SHAPES  # noqa: E402

STAGES = {
    "encode", "base step", "three draft steps", "one decode", "frequency update",
    "window, end to end",
}  # fmt: skip


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_gpu_suite_measures_every_stage_and_convolution_and_writes_json(tmp_path):
    out = run("gpu_suite.py", "--small", "-o", tmp_path / "gpu.json")
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["environment"].keys() >= {"device", "torch", "date", "command"}
    assert [result[part]["exit"] for part in ("sweep", "stages")] == [0, 0]
    stages, sweep = result["stages"]["result"], result["sweep"]["result"]
    assert stages.keys() == {f"{name}: {stage}" for name in ("plain", "engine") for stage in STAGES}
    assert all(row["seconds"] > 0 for row in stages.values())
    assert "| stages | engine: window, end to end |" in out
    for shape in VAE_SHAPES:
        assert {f"{shape.name} | {way}" for way in ("contiguous", "ours")} <= sweep.keys()
    assert sweep["all of one chunk, decode"]["ours ms"] > 0


def test_gpu_suite_takes_eight_minutes_at_most():
    assert sum(part.seconds for part in PARTS) <= 8 * 60


def test_gpu_suite_says_so_when_a_part_runs_past_its_limit():
    outcome = run_part(Part("endless", ("-c", "import time; time.sleep(60)"), 1), small=False)
    assert outcome["exit"] is None and outcome["seconds"] < 30


def test_counts_has_a_row_for_each_op_with_one_launch():
    rows = [line.split(" | ") for line in run("counts.py").splitlines()[2:]]
    assert {row[0].strip("| ") for row in rows} >= {"frequency_update", "causal_conv3d"}
    assert {row[3] for row in rows} == {"1"}


def test_counts_of_windows_show_what_the_engine_leaves_out():
    rows = [line.strip("| ").split(" | ") for line in run("counts.py", "--window").splitlines()]
    launches = {row[0]: (row[2], row[3]) for row in rows if row[1:2] == ["all"]}
    assert len(launches) == 5
    assert int(launches["plain, paper"][0].replace(",", "")) > 19_000
    assert launches["engine, graphs"][1] == "5"


def test_quality_prints_what_the_model_card_says():
    out = run("quality.py", ROOT / "tests" / "data" / "bbb_360p_heldout.mp4")
    card = (ROOT / "psssr_fast" / "weights" / "nano.md").read_text()
    printed = [float(line.split(" dB")[0].split()[-1]) for line in out.splitlines()[1:]]
    rows = re.findall(r"^\| (?:bicubic|base|the update)[^|]*\| (\d+\.\d+) \|", card, re.MULTILINE)
    assert len(rows) == 4
    assert printed == pytest.approx([float(row) for row in rows], abs=0.02)  # other CPUs round
