"""The scripts beside the benchmarks run to their end, at a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts import their neighbours
import gpu_suite  # noqa: E402
from gpu_suite import PARTS, Part, run_part  # noqa: E402
from vae_shapes import VAE_SHAPES  # noqa: E402

STAGES = {
    "encode", "base step", "three draft steps", "one decode", "frequency update",
    "window, end to end",
}  # fmt: skip


COUNTS = """
import sys
sys.argv = ["counts.py"]
import counts
counts.main()
print("--- windows")
sys.argv.append("--window")
counts.main()
"""


@pytest.fixture(scope="module")
def counted() -> list[list[list[str]]]:
    """Cells of the two tables, of ops and of windows."""
    run = subprocess.run(
        [sys.executable, "-c", COUNTS], cwd=ROOT / "benchmarks", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    tables = run.stdout.split("--- windows\n")
    return [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in tables]


def test_gpu_suite_measures_every_stage_and_convolution_and_writes_json(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--small", "-o", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main()
    out = capsys.readouterr().out
    assert not ended.value.code, out
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


def test_counts_has_a_row_for_each_op_with_one_launch(counted):
    rows = counted[0][2:]
    assert {row[0] for row in rows} >= {"frequency_update", "causal_conv3d"}
    assert {row[3] for row in rows} == {"1"}


def test_counts_of_windows_show_what_the_engine_leaves_out(counted):
    launches = {row[0]: (row[2], row[3]) for row in counted[1] if row[1:2] == ["all"]}
    assert len(launches) == 5
    assert int(launches["plain, paper"][0].replace(",", "")) > 19_000
    assert launches["engine, graphs"][1] == "5"
