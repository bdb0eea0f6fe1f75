"""``psssr eval``."""

import json

import numpy as np
import pytest
from cli_fixtures import Psssr, write_frames, write_video
from PIL import Image


@pytest.fixture
def psssr(capsys, monkeypatch) -> Psssr:
    monkeypatch.delenv("PSSSR_METRICS_WEIGHTS", raising=False)
    return Psssr(capsys)


@pytest.fixture
def truth(tmp_path):
    return write_frames(tmp_path / "movie", 3)


def test_a_table_of_two_results(psssr, tmp_path, truth):
    video = write_video(tmp_path / "a.mkv", 3)
    done = psssr("eval", video, truth, "--reference", truth, "--names", "coded,same")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "3 frames 64x36" and lines[1].split() == ["coded", "same", "truth"]
    rows = {line.split(" (")[0].strip(): line for line in lines[2:] if " (" in line}
    assert rows["PSNR, dB"].split()[-2:] == ["inf", "-"]
    assert float(rows["PSNR, dB"].split()[-3]) > 35
    assert "not computed: lpips-alex" in done.out and "--weights" in done.out


def test_values_of_every_frame_and_a_plot(psssr, tmp_path, truth):
    plot = tmp_path / "plot.png"
    done = psssr(
        "eval", truth, "--reference", truth, "--metrics", "psnr,ssim", "--json", "--plot", plot
    )
    document = json.loads(done.out)
    assert document["schema"] == "psssr.eval/1" and document["frames"] == 3
    assert document["metrics"]["ssim"]["frames"]["movie"] == pytest.approx([1, 1, 1])
    assert np.asarray(Image.open(plot)).shape[1] == 1600
    again = psssr("eval", truth, "--reference", truth, "--plot", plot)
    assert again.code == 6 and "--overwrite" in again.err


def test_a_model_against_a_truth(psssr, truth):
    done = psssr(
        "eval", "--model", "nano", "--reference", truth, "--degradation", "bd", "--metrics", "psnr",
        "--frames", "2", "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].split() == ["bicubic", "base", "full", "truth"]
    assert "degradation bd" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "nothing to measure"),
        (["TRUTH", "--metrics", "psnr"], 2, "--reference"),
        (["TRUTH", "--reference", "TRUTH", "--metrics", "lpips-alex"], 4, "lpips_alex.safetensors"),
        (["TRUTH", "--metrics", "vmaf"], 2, "no such metric"),
        (["TRUTH", "--weights", "nowhere"], 4, "no such directory"),
        (["nowhere.mp4"], 3, "nowhere.mp4"),
        (["TRUTH", "TRUTH"], 2, "--names"),
        (["TRUTH", "--names", "truth", "--reference", "TRUTH"], 2, "'truth' is taken"),
        (["TRUTH", "--model", "nano"], 2, "only --reference"),
        (["--model", "nano"], 2, "--reference"),
        (["--model", "nano", "--reference", "TRUTH", "--degradation", "vhs"], 2, "vhs"),
        (["TRUTH", "--reference", "TRUTH", "--border", "18"], 2, "border of 18"),
        (["TRUTH", "--frames", "9:", "--metrics", "niqe"], 2, "niqe"),
        (["TRUTH", "--reference", "TRUTH", "--frames", "9:", "--metrics", "psnr"], 3, "no frames"),
    ],
)
def test_bad_requests_are_one_line(psssr, truth, arguments, code, words):
    done = psssr("eval", *(truth if word == "TRUTH" else word for word in arguments))
    assert done.code == code and words in done.err
    errors = [line for line in done.err.splitlines() if line.startswith("psssr: error")]
    assert len(errors) == 1
