"""The scripts beside the benchmarks run to their end, at a small size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = {
    "encode", "base step", "three draft steps", "one decode", "frequency update",
    "window, end to end",
}  # fmt: skip


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_gpu_suite_times_every_stage_and_writes_json(tmp_path):
    out = run("gpu_suite.py", "--small", "-o", tmp_path / "gpu.json")
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["stages"].keys() == STAGES
    assert all(row["seconds"] > 0 for row in result["stages"].values())
    assert "| window, end to end |" in out
    assert result["environment"].keys() >= {"device", "torch", "date", "command"}


def test_quality_prints_what_the_model_card_says():
    out = run("quality.py", ROOT / "tests" / "data" / "bbb_360p_heldout.mp4")
    card = (ROOT / "psssr_fast" / "weights" / "nano.md").read_text()
    printed = [float(line.split(" dB")[0].split()[-1]) for line in out.splitlines()[1:]]
    rows = re.findall(r"^\| (?:bicubic|base|the update)[^|]*\| (\d+\.\d+) \|", card, re.MULTILINE)
    assert len(rows) == 4
    assert printed == pytest.approx([float(row) for row in rows], abs=0.02)  # other CPUs round
