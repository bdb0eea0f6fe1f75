"""PSNR and SSIM against their definitions."""

import math

import numpy as np
import pytest
import torch
from metric_oracles import as_clip, blurred, luma_of, photo, ssim_of

from psssr_fast.errors import InputError, UsageError
from psssr_fast.metrics.psnr import psnr
from psssr_fast.metrics.ssim import ssim


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    truth = photo()[:61, :83]
    noise = np.random.default_rng(0).normal(0, 0.02, truth.shape)
    return np.clip(blurred(truth, 1) + noise, 0, 1), truth


def test_psnr_is_minus_ten_log_of_the_mean_square(pair):
    result, truth = pair
    expected = -10 * np.log10(np.mean((result - truth) ** 2))
    luma = 10 * np.log10(255**2 / np.mean((luma_of(result) - luma_of(truth)) ** 2))
    inner = -10 * np.log10(np.mean((result - truth)[4:-4, 4:-4] ** 2))
    clips = as_clip(result), as_clip(truth)
    assert psnr(*clips).tolist() == pytest.approx([expected], abs=1e-4)
    assert psnr(*clips, luma=True).tolist() == pytest.approx([luma], abs=1e-4)
    assert psnr(*clips, border=4).tolist() == pytest.approx([inner], abs=1e-4)
    assert psnr(*(clip.double() for clip in clips)).dtype == torch.float64


def test_psnr_of_one_level_everywhere_is_48_decibels_and_each_frame_has_its_own():
    truth = torch.full((2, 3, 4, 5), 0.5)
    result = truth + torch.tensor([1 / 255, 0.0])[:, None, None, None]
    first, second = psnr(result, truth).tolist()
    assert first == pytest.approx(20 * math.log10(255), abs=1e-4) and second == math.inf


def test_ssim_is_the_published_formula_in_rgb_and_luma(pair):
    result, truth = pair
    channels = [ssim_of(255 * result[..., c], 255 * truth[..., c]) for c in range(3)]
    clips = as_clip(result).double(), as_clip(truth).double()
    assert ssim(*clips).tolist() == pytest.approx([np.mean(channels)], abs=1e-6)
    luma = ssim_of(luma_of(result), luma_of(truth))
    assert ssim(*clips, luma=True).tolist() == pytest.approx([luma], abs=1e-6)
    inner = ssim_of(luma_of(result)[3:-3, 3:-3], luma_of(truth)[3:-3, 3:-3])
    assert ssim(*clips, luma=True, border=3).tolist() == pytest.approx([inner], abs=1e-6)


def test_ssim_in_single_precision_holds_on_flat_and_bright_pictures(pair):
    flat = 0.98 + 0.01 * np.random.default_rng(1).random((40, 40, 3))
    for result, truth in (pair, (flat, blurred(flat, 1))):
        clips = as_clip(result), as_clip(truth)
        wide = ssim(*(clip.double() for clip in clips))
        assert ssim(*clips).tolist() == pytest.approx(wide.tolist(), abs=2e-5)


def test_ssim_of_equal_frames_is_one_and_it_is_symmetric(pair):
    result, truth = map(as_clip, pair)
    assert ssim(truth, truth).item() == pytest.approx(1, abs=1e-6)
    assert ssim(result, truth).item() == pytest.approx(ssim(truth, result).item(), abs=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_cannot_be_compared_is_refused(metric):
    clip = torch.rand(1, 3, 20, 30)
    with pytest.raises(InputError, match="one shape"):
        metric(clip, clip[..., :-1])
    with pytest.raises(InputError, match="float tensor"):
        metric(clip.mul(255).byte(), clip)
    with pytest.raises(UsageError, match="border of 10"):
        metric(clip, clip, border=10)


def test_ssim_needs_room_for_its_window():
    clip = torch.rand(1, 3, 30, 30)
    with pytest.raises(InputError, match="11x11"):
        ssim(clip, clip, border=10)
