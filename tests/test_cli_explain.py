"""``psssr plan``, and the same inside ``psssr upscale``: what would run, why, and what cannot."""

import json
import re
from pathlib import Path

import pytest
from cli_fixtures import Psssr, run_process, write_frames, write_video

from psssr_fast.runtime.choices import device_name
from psssr_fast.runtime.planner import GIB


@pytest.fixture
def psssr(capsys):
    return Psssr(capsys)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """40 frames 64x36."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=40)


FAST = ("--device", "cpu", "--dtype", "float32")


def plan_of(psssr, *arguments: object) -> dict:
    done = psssr("plan", *FAST, *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_plan_says_in_a_few_lines_what_would_run(psssr, clip):
    done = psssr("plan", clip, *FAST)
    assert (done.code, done.err) == (0, "")
    first, *lines = done.out.splitlines()
    assert first == f"{clip}: 40 frames 64x36 to 256x144, nano, cpu, float32"
    titles = [line.split()[0] for line in lines]
    assert titles == ["windows", "memory", "decodes", "work", "time", "why"]
    text = done.out
    assert "16x144x256, overlap 1x64; 3 over time, 1 down, 1 across" in text
    assert re.search(
        r"memory +\S+ MiB of \S+ GiB \(90% of what is free on cpu\): weights \S+ MiB", text
    )
    assert "decodes  in turn" in text
    assert "not known: nothing was measured on this device" in text
    assert "the model's own windows fit" in text


def test_the_document_has_the_same_in_numbers(psssr, clip):
    plan = plan_of(psssr, clip, "--scale", 3)
    assert plan["schema"] == "psssr.plan/1"
    assert plan["job"] == {
        "frames": 40, "input_height": 36, "input_width": 64, "height": 108, "width": 192,
    }  # fmt: skip
    assert (plan["window"], plan["counts"]) == ([16, 108, 192], [3, 1, 1])
    memory = plan["memory_bytes"]
    parts = (memory[name] for name in ("weights", "clip", "window", "scratch"))
    assert memory["total"] == sum(parts)
    assert memory["total"] <= plan["memory_bytes_decodes_together"]
    assert (plan["fits"], plan["decodes"], plan["time"]) == (True, "in turn", None)


def test_a_limit_makes_windows_smaller(psssr, clip):
    whole = plan_of(psssr, clip)
    limit = 0.7 * whole["memory_bytes"]["total"] / GIB
    plan = plan_of(psssr, clip, "--vram-limit", limit)
    assert plan["memory_bytes"]["total"] <= limit * GIB
    assert plan["limit"] == "--vram-limit"
    assert plan["window"] != whole["window"]
    assert "the model's own windows need" in plan["reason"]


def test_the_full_size_is_planned_without_weights_and_fits_into_less_with_smaller_windows(
    psssr, clip
):
    options = ("--model", "wan2.1-1.3b", "--dtype", "bfloat16", "--height", "576")
    plan = plan_of(psssr, clip, *options, "--vram-limit", "8")
    assert plan["window_flops"] > 1e13
    assert plan["memory_bytes"]["weights"] > 4 * 10**9
    assert plan["memory_bytes"]["total"] <= 8 * GIB


def test_what_cannot_fit_is_refused_with_numbers_in_one_line(psssr, clip):
    done = psssr("plan", clip, *FAST, "--vram-limit", "0.001")
    assert (done.code, done.out) == (5, "")
    assert re.fullmatch(
        r"psssr: error: even windows of 2x\d+x\d+ need \S+ MiB \(weights \S+ MiB \+ .*\); "
        r"there may be 1\.0 MiB \(--vram-limit\)\. Allow more, or use .*\n",
        done.err,
    )


def test_a_window_that_was_asked_for_is_kept_or_refused(psssr, clip):
    plan = plan_of(psssr, clip, "--window", "5x96x112", "--overlap", "2x16", "--vram-limit", "2")
    assert (plan["window"], plan["overlap"], plan["reason"]) == (
        [5, 96, 112],
        [2, 16],
        "as asked for",
    )
    done = psssr("plan", clip, *FAST, "--window", "5x96x112", "--vram-limit", "0.001")
    assert done.code == 5
    assert "error: --window 5x96x112 needs " in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "much"])
@pytest.mark.parametrize("verb", ["plan", "upscale"])
def test_a_limit_must_be_an_amount_of_memory(psssr, clip, verb, limit):
    done = psssr(verb, clip, "--vram-limit", limit)
    assert (done.code, done.out) == (2, "")
    assert "--vram-limit" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.mp4"], 3, "missing.mp4: no such file"),
        (["--model", "no_model"], 4, "no model 'no_model'"),
        (["--scale", "100"], 2, "the scale must lie between"),
        (["--scale", "2", "--height", "100"], 2, "exclude each other"),
        (["--window", "8x100"], 2, "--window must be FRAMESxHEIGHTxWIDTH"),
        (["--rates", "missing.json"], 2, "--rates missing.json: not a document of `psssr bench"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_planned_is_one_line(psssr, clip, arguments, code, message):
    source = [] if arguments[0] == "missing.mp4" else [clip]
    done = psssr("plan", *source, *arguments, *FAST)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def rates_file(path: Path, **changes: object) -> Path:
    import torch

    content = {
        "schema": "psssr.bench/1", "model": "nano", "dtype": "float32",
        "device_name": device_name(torch.device("cpu")),
        "window_flops": 10**12, "window_seconds": 2.0, "stages": None,
    }  # fmt: skip
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_time_comes_from_measured_rates_and_from_nothing_else(psssr, clip, tmp_path):
    rates = rates_file(tmp_path / "rates.json")
    plan = plan_of(psssr, clip, "--rates", rates)
    whole = 3 * plan["window_flops"] / 0.5e12
    assert plan["time"]["seconds"] == pytest.approx(whole)
    assert not plan["time"]["at_least"]
    stages = [{"name": "base", "flops": 10**12, "seconds": 4.0}]
    slower = plan_of(psssr, clip, "--rates", rates_file(tmp_path / "stages.json", stages=stages))
    assert whole < slower["time"]["seconds"] < 2 * whole
    assert "time     about " in psssr("plan", clip, *FAST, "--rates", rates).out


@pytest.mark.parametrize("change", ["model", "dtype", "device_name"])
def test_rates_of_something_else_are_refused(psssr, clip, tmp_path, change):
    rates = rates_file(tmp_path / "rates.json", **{change: "other"})
    done = psssr("plan", clip, *FAST, "--rates", rates)
    assert done.code == 2
    assert "measured with" in done.err
    assert done.err.count("\n") == 1


def test_upscale_explains_and_runs(psssr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "frames", 2)
    options = ("-s", "2", "--explain", "--progress", "none")
    done = psssr("upscale", "frames", "-o", "out", *options, *FAST)
    assert done.code == 0, done.err
    assert "psssr: frames: windows: 2x72x128, overlap 1x64; 1 over time" in done.err
    assert "psssr: frames: why: as asked for" in done.err
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_upscale_keeps_to_a_limit(psssr, clip, tmp_path):
    limit = 0.7 * plan_of(psssr, clip)["memory_bytes"]["total"] / GIB
    planned = plan_of(psssr, clip, "--vram-limit", limit)
    options = ("--vram-limit", limit, "--progress", "none", "--json")
    done = psssr("upscale", clip, "-o", tmp_path / "out.mp4", *options, *FAST)
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    windows = result["settings"]["windows"]
    assert [windows["overlap_frames"], windows["overlap_pixels"]] == planned["overlap"]
    used = (windows["frames"], windows["height"], windows["width"])
    assert used == tuple(planned["window"])
    assert result["engine"] == "fused"


def test_upscale_refuses_a_window_over_the_limit_and_leaves_nothing(psssr, clip, tmp_path):
    options = ("--window", "8x144x256", "--vram-limit", "0.001", "--progress", "none")
    done = psssr("upscale", clip, "-o", tmp_path / "out.mp4", *options, *FAST)
    assert (done.code, done.out) == (5, "")
    assert "error: --window 8x144x256 needs " in done.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_heavy_package():
    start = (
        "import sys; from psssr_fast.cli import main; code = main(); "
        "print(*[m for m in ('torch', 'numpy', 'av') if m in sys.modules]); sys.exit(code)"
    )
    done = run_process("plan", "--help", start=start)
    assert (done.code, done.err, done.out.splitlines()[-1]) == (0, "", "")
    for option in ("--vram-limit", "--rates", "--window", "--json", "--debug"):
        assert option in done.out
