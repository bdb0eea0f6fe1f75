"""``psssr bench``: what it reports, at sizes that take no time."""

import json
import re

import pytest
import torch
from cli_fixtures import Psssr, run_process

from psssr_fast.benchmark import Workload, load_upscaler, write_clip
from psssr_fast.engine import check_engine, fuse
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import SIZES, WAN_1_3B, DitSize, VaeSize, resized
from psssr_fast.pipeline import restore_window
from psssr_fast.runtime.clock import StageClock
from psssr_fast.runtime.dit_engine import FusedDit
from psssr_fast.runtime.ranges import STAGES
from psssr_fast.video import probe

SMALL = ("--device", "cpu", "--dtype", "float32", "--size", "64x96", "--frames", "2")
TINY = resized(
    WAN_1_3B,
    DitSize(dim=24, ffn_dim=32, heads=2, layers=2, kept_blocks=(1,), text_dim=8, freq_dim=16),
    VaeSize(dim=4),
)


@pytest.fixture
def psssr(capsys):
    return Psssr(capsys)


def test_everything_is_measured_and_reported_apart(psssr, tmp_path):
    trace = tmp_path / "trace.json"
    done = psssr("bench", *SMALL, "--rounds", 2, "--stages", "--profile", trace, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["schema"] == "psssr.bench/1"
    assert (found["model"], found["weights"], found["engine"]) == ("nano", "checkpoint", "fused")
    assert (found["size"], found["rounds"]) == ([2, 64, 96], 2)
    cold = found["cold_start"]
    assert cold["import_s"] is None  # torch was here before
    assert cold["load_s"] > 0 and cold["first_window_s"] > 0
    assert found["model_fps"] == pytest.approx(2 / found["window_seconds"])
    end = found["end_to_end"]
    assert (end["frames"], end["skipped"]) == (3, None)  # two windows that share a frame
    assert end["fps"] == pytest.approx(3 / end["seconds"])
    idle = end["idle"]
    waited = idle["start_s"] + idle["frames_s"] + idle["output_s"]
    assert min(idle["start_s"], idle["output_s"]) > 0
    assert idle["share"] == pytest.approx(waited / end["seconds"])
    assert 0 < idle["share"] < 1
    assert (idle["device_share"], idle["queue_frames"]) == (None, 8)
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert tuple(stages) == STAGES
    assert sum(stage["flops"] for stage in stages.values()) == found["window_flops"]
    for stage in stages.values():
        assert 0 < stage["floor_share"] == stage["floor_s"] / stage["seconds"]
    floor = stages["base"]["flops"] / found["rates"]["matmul_flops"]
    assert stages["base"]["floor_s"] >= floor
    memory = found["memory"]
    assert abs(memory["predicted"] - memory["measured"]) <= max(0.1 * memory["measured"], 2**16)
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {f"psssr.{name}" for name in STAGES} <= names


def test_people_get_lines(psssr):
    done = psssr("bench", *SMALL, "--rounds", 1, "--stages")
    assert done.code == 0, done.err
    for words in (
        r"^nano \(fused engine, checkpoint weights\), float32$",
        r"^  cold start +\(already imported\) \+ \d+\.\d\d s load \+ \d+\.\d\d s first window$",
        r"^  model +\d\S* frames/s: 2x64x96 in \S+ s, median of 1$",
        r"^  file to file +\S+ frames/s \(3 frames in \S+ s\)$",
        r"^  idle +\d+\.\d% of that time: \S+ s for the first window's frames, \S+ s for later "
        r"ones, \S+ s for the encoder; queues of 8 frames$",
        r"^  memory +\S+ MiB for a window \(predicted \S+ MiB\), weights \S+ MiB$",
        r"^  machine +matrix product \S+ TFLOP/s, copy \S+ GB/s, in this run$",
        *(rf"^  {name} +\S+ +\S+ +\d+%$" for name in STAGES),
    ):
        assert re.search(words, done.out, re.MULTILINE), words


def test_without_weights_they_are_random_and_odd_sizes_are_not_written_to_files(psssr, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    options = ("--model", "tiny", "--size", "20x36", "--frames", "3", "--rounds", "1", "--json")
    done = psssr("bench", "--device", "cpu", "--dtype", "bfloat16", *options)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["weights"], found["dtype"], found["stages"]) == ("random", "bfloat16", None)
    end = found["end_to_end"]
    assert (end["skipped"], end["idle"]) == ("height and width are no multiples of 8", None)


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_the_engine_that_is_asked_for_is_measured(psssr, monkeypatch, engine):
    """Of the embedded model and of random weights, in a window and from file to file."""
    fused, restored = [], []

    def noting_fuse(networks, sampling):
        fused.append(networks)
        return fuse(networks, sampling)

    def noting_restore(networks, *arguments):
        restored.append(type(networks.base))
        return restore_window(networks, *arguments)

    monkeypatch.setattr("psssr_fast.upscaler.fuse", noting_fuse)
    for module in ("benchmark", "recovery"):
        monkeypatch.setattr(f"psssr_fast.{module}.restore_window", noting_restore)
    done = psssr("bench", *SMALL, "--rounds", "1", "--engine", engine, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["engine"] == engine
    monkeypatch.setitem(SIZES, "tiny", TINY)
    cpu = torch.device("cpu")
    workload = Workload("tiny", 2, 32, 48, cpu, torch.float32, check_engine(engine))
    clip = torch.rand(2, 3, 8, 12)
    assert load_upscaler(workload, TINY)(clip, scale=4).isfinite().all()
    assert len(fused) == (2 if engine == "fused" else 0)
    assert set(restored) == {FusedDit if engine == "fused" else Dit}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--size", "720"], 2, "--size must be HEIGHTxWIDTH; got '720'"),
        (["--size", "0x64"], 2, "--size must be at least 1; got 0"),
        (["--frames", "0"], 2, "--frames must be at least 1; got 0"),
        (["--rounds", "-1"], 2, "--rounds must be at least 1; got -1"),
        (["--rounds", "many"], 2, "Invalid value for '--rounds'"),
        (["--device", "nowhere"], 2, "no such device: 'nowhere'"),
        (["--engine", "fast"], 2, "engine must be 'fused' or 'plain'; got 'fast'"),
        (["--dtype", "int8"], 2, "Invalid value for '--dtype'"),
        (["--profile", "."], 6, ".: cannot be written: . is a folder"),
        (["--profile", "no/a.json"], 6, "no/a.json: cannot be written: No such file or directory"),
        (["--profile", 300 * "x"], 6, "x: cannot be written: File name too long"),
        (["--model", "no_model"], 4, "no model 'no_model'"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_bad_arguments_are_one_line(psssr, tmp_path, monkeypatch, options, code, message):
    monkeypatch.chdir(tmp_path)
    done = psssr("bench", *SMALL, *options)
    assert (done.code, done.out) == (code, "")
    errors = [line for line in done.err.splitlines() if "error: " in line]
    assert len(errors) == 1 and message in errors[0]


def test_the_clock_adds_up_what_comes_more_than_once():
    clock = StageClock(torch.device("cpu"))
    for name in ("decode", "base", "decode"):
        with clock(name):
            pass
    assert clock.spent.keys() == {"decode", "base"}
    assert all(seconds >= 0 for seconds in clock.spent.values())


def test_the_clip_that_is_made_is_a_video(tmp_path):
    write_clip(tmp_path / "clip.mp4", 3, 16, 24)
    info = probe(tmp_path / "clip.mp4")
    assert (info.frames, info.height, info.width) == (3, 16, 24)


def test_help_imports_no_heavy_package():
    start = (
        "import sys; from psssr_fast.cli import main; code = main(); "
        "print(*[m for m in ('torch', 'numpy', 'av') if m in sys.modules]); sys.exit(code)"
    )
    done = run_process("bench", "--help", start=start)
    assert (done.code, done.err, done.out.splitlines()[-1]) == (0, "", "")
    for option in ("--size", "--frames", "--stages", "--profile", "--json", "--debug"):
        assert option in done.out
