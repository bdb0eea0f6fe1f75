"""The embedded model on real frames that it was never trained on."""

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_fixtures import Psssr

from psssr_fast import Upscaler
from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.config import Windows, settings_for
from psssr_fast.resize import resize_frames

CLIP = Path(__file__).parent / "data" / "bbb_360p_heldout.mp4"
WEIGHTS = Path(__file__).parents[1] / "psssr_fast" / "weights" / "nano.safetensors"
CARD = WEIGHTS.with_suffix(".md")


@pytest.fixture(scope="module")
def pictures():
    """Ground truth, bicubic, and the model's: ``[frames, 3, H, W]`` in [0, 1], 8 bits."""
    with av.open(str(CLIP)) as container:
        high = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    truth = torch.from_numpy(high).permute(0, 3, 1, 2) / 255
    size = (truth.shape[2] // 4, truth.shape[3] // 4)
    small = F.interpolate(truth, size, mode="bicubic", antialias=True).clamp(0, 1)
    low = (small * 255).round().to(torch.uint8)
    bicubic = resize_frames(low.float() / 127.5 - 1, *truth.shape[2:]) / 2 + 0.5
    restored = Upscaler.from_pretrained("nano")(low.permute(0, 2, 3, 1).numpy())
    return truth, bicubic, torch.from_numpy(restored).permute(0, 3, 1, 2) / 255


def luma(picture):
    return torch.einsum("c,tchw->thw", torch.tensor([0.299, 0.587, 0.114]), picture)


def psnr(a, b):
    return float(-10 * (luma(a) - luma(b)).square().mean().log10())


def test_nano_is_better_than_bicubic(pictures):
    truth, bicubic, restored = pictures
    assert psnr(restored, truth) > psnr(bicubic, truth) + 1.0


def test_nano_gives_back_detail_that_bicubic_lost(pictures):
    """Energy of the luma's finest detail, which interpolation cannot make."""

    def detail(picture):
        y = luma(picture)[:, None]
        return float((y - F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)).square().mean())

    truth, bicubic, restored = (detail(p) for p in pictures)
    assert bicubic < restored < 1.2 * truth


def test_nano_does_not_flicker(pictures):
    """Change from frame to frame stays that of the truth, within a fifth."""

    def change(picture):
        return float(luma(picture).diff(dim=0).abs().mean())

    truth, _, restored = (change(p) for p in pictures)
    assert restored == pytest.approx(truth, rel=0.2)


def test_tiles_of_a_constant_are_seamless():
    windows = Windows(frames=4, height=64, width=96, overlap_frames=1, overlap_pixels=16)
    up = Upscaler.from_pretrained("nano", settings=settings_for("released", windows))
    error = np.abs(up(np.full((6, 40, 56, 3), 102, np.uint8)).astype(int) - 102)
    inside = error[:, 16:-16, 16:-16]  # tiles meet here; the picture's own edge is seen by nano
    assert inside.max() <= 1
    assert error.max() <= 4


def test_embedded_weights_are_small_enough_to_ship():
    assert WEIGHTS.stat().st_size <= 8 * 2**20


def test_the_card_counts_the_parameters_and_bytes_that_are_there():
    row = re.search(r"^\| parameters \|(.*)\|$", CARD.read_text(), re.MULTILINE)[1].replace(",", "")
    loaded = load_checkpoint("nano")
    parts = {name: getattr(loaded, name).values() for name in ("base", "draft", "codec")}
    counts = {name: sum(tensor.numel() for tensor in part) for name, part in parts.items()}
    assert {name: int(re.search(rf"{name} (\d+)", row)[1]) for name in counts} == counts
    assert int(re.match(r" (\d+):", row)[1]) == sum(counts.values())
    assert int(re.search(r"(\d+) bytes", row)[1]) == WEIGHTS.stat().st_size


def test_the_card_has_the_values_that_its_command_gives(capsys):
    columns = f"| {CLIP.name}, 8 frames | bicubic | base | all steps |"
    table = CARD.read_text().partition(columns)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    done = Psssr(capsys)(
        "eval", "--model", "nano", "--reference", CLIP, "--metrics", "psnr-y,ssim-y",
        "--device", "cpu", "--dtype", "float32", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    metrics, rows = json.loads(done.out)["metrics"], []
    for name, digits in (("psnr-y", 2), ("ssim-y", 3)):
        mean = [metrics[name]["mean"][result] for result in ("bicubic", "base", "full")]
        rows.append([metrics[name]["title"], *(pytest.approx(x, abs=10**-digits) for x in mean)])
    assert [[title, *map(float, values)] for title, *values in cells] == rows
