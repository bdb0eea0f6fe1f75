"""Degradations: what is stated of each is measured, over many seeds and on real pictures."""

from collections import Counter
from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psssr_fast.errors import UsageError
from psssr_fast.resize import resize_frames
from psssr_fast.training.blur import blur_separable, gaussian_taps
from psssr_fast.training.degradation import (
    BD_SIGMA,
    BD_TAPS,
    DEGRADATIONS,
    MIXED_LIGHT,
    MIXED_NOISY,
    degrade,
    draw_light,
)
from psssr_fast.training.draws import Draw, derived_seed

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def photo():
    """A photograph as a still clip of three frames, ``[1, 3, 3, 256, 320]`` in [-1, 1]."""
    pixels = torch.from_numpy(np.array(Image.open(DATA / "photo_256.png")))
    return pixels.permute(2, 0, 1)[None, :, None].expand(1, 3, 3, 256, 320) / 127.5 - 1


def impulse_moments():
    """Centre and variance, in high-resolution pixels, of what ``bd`` makes of a white pixel.

    The pixel stands at each of the 4x4 places of a block in turn: what it becomes is then the
    kernel as seen by one low-resolution pixel.
    """
    total, centre, spread = 0.0, 0.0, 0.0
    offsets = 4 * torch.arange(16, dtype=torch.float64) + 1.5  # centre of each block
    for y in range(4):
        for x in range(4):
            picture = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
            picture[..., 32 + y, 32 + x] = 1
            low = blur_separable(picture, gaussian_taps(BD_SIGMA, BD_TAPS), 4)
            weight, distance = low[0, 0].sum(0), offsets - (32 + x)
            total += float(weight.sum())
            centre += float((weight * distance).sum())
            spread += float((weight * distance.square()).sum())
    return centre / total, spread / total


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_shape_levels_and_seed(photo, name):
    clip = photo.repeat(2, 1, 1, 1, 1)[..., :96, :128]
    low = degrade(clip, name, 5)
    assert low.shape == (2, 3, 3, 24, 32)
    assert low.dtype == clip.dtype
    levels = (low + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert -1 <= low.min() < low.max() <= 1
    assert torch.equal(low, degrade(clip, name, 5))
    assert torch.equal(low, degrade(clip, name, torch.Generator().manual_seed(5)))
    if name not in ("bicubic", "bd"):
        assert not torch.equal(low, degrade(clip, name, 6))
        assert not torch.equal(low[0], low[1])  # clips of a batch are drawn for one by one


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_picture_stays_where_it_was(photo, name):
    clip = photo[0, :, 0, 40:]
    errors = dict.fromkeys([(y, x) for y in (-2, 0, 2) for x in (-2, 0, 2)], 0.0)
    for seed in range(8):
        low = degrade(clip[None, :, None], name, seed)[0, :, 0]
        big = resize_frames(low[None], 216, 320)[0, :, 16:-16, 16:-16]
        for y, x in errors:
            moved = clip[:, 16 + y : 200 + y, 16 + x : 304 + x]
            errors[y, x] += float((big - moved).square().mean())
    assert min(errors, key=errors.get) == (0, 0)


def test_bad_requests_are_refused(photo):
    with pytest.raises(UsageError, match=r"no degradation 'blurry'; known are: bicubic, bd"):
        degrade(photo, "blurry", 0)
    with pytest.raises(UsageError, match=r"clips of 318x256 cannot be made 4 times smaller"):
        degrade(photo[..., :318], "bicubic", 0)


def test_bicubic_is_antialiased_and_exact_on_ramps():
    ramp = torch.linspace(-0.5, 0.5, 64).expand(1, 3, 2, 64, 64)
    low = degrade(ramp, "bicubic", 0)
    expected = ramp[..., 1:62:4].add(ramp[..., 2:63:4]).div(2)[..., :16, :]
    assert (low - expected)[..., 4:-4].abs().max() <= 0.51 / 127.5
    noise = torch.rand(1, 3, 2, 128, 128) * 2 - 1
    aliased = noise[..., ::4, ::4].std()
    assert degrade(noise, "bicubic", 0).std() < 0.4 * aliased


def test_bd_blurs_with_sigma_1_5_about_the_centre_of_each_block():
    centre, variance = impulse_moments()
    assert abs(centre) < 1e-6
    # an impulse over all places of a block sees the kernel alone: sigma 1.5
    assert variance == pytest.approx(1.5**2, rel=5e-3)


def test_bd_keeps_brightness_and_every_fourth_pixel():
    flat = torch.full((1, 3, 1, 32, 32), 0.25)
    assert (degrade(flat, "bd", 0) - 0.25).abs().max() <= 0.51 / 127.5
    # a cosine of 16 pixels loses exp(-2 (pi sigma f)^2) of its height, f = 1/16
    x = torch.arange(64) - 1.5
    wave = 0.5 * torch.cos(2 * pi * x / 16).expand(1, 3, 1, 64, 64)
    low = degrade(wave, "bd", 0)[0, 0, 0, 8]
    expected = 0.5 * np.exp(-2 * (pi * 1.5 / 16) ** 2)
    assert float(low[4:12].abs().max()) == pytest.approx(expected, abs=0.005)


def test_light_draws_what_is_stated():
    draws = [draw_light(Draw(seed)) for seed in range(3000)]
    blur, noise, crf = (np.array([getattr(d, n) for d in draws]) for n in ("blur", "noise", "crf"))
    assert 0.2 <= blur.min() < 0.21 and 1.19 < blur.max() < 1.2
    assert 0 <= noise.min() < 0.01 and 1.99 < noise.max() < 2
    assert set(crf) == set(range(18, 31))
    assert abs(blur.mean() - 0.7) < 0.02 and abs(noise.mean() - 1) < 0.04
    assert max(Counter(crf).values()) < 1.35 * 3000 / 13


def test_light_is_between_bicubic_and_realesrgan(photo):
    plain = degrade(photo, "bicubic", 0)
    distance = {
        name: np.mean([float((degrade(photo, name, s) - plain).square().mean()) for s in range(6)])
        for name in ("light", "realesrgan")
    }
    assert 0 < distance["light"] < 0.25 * distance["realesrgan"]


def test_derived_seeds_do_not_collide_or_correlate():
    seeds = {derived_seed(a, b) for a in range(100) for b in range(100)}
    assert len(seeds) == 10_000
    first = np.array([Draw(derived_seed(7, i)).uniform(0, 1) for i in range(2000)])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.08
    assert abs(first.mean() - 0.5) < 0.03


def test_draws_reach_both_ends_and_keep_their_weights():
    draw = Draw(1)
    assert {draw.integer(3, 5) for _ in range(200)} == {3, 4, 5}
    counts = Counter(draw.pick((0.2, 0.7, 0.1)) for _ in range(5000))
    assert [counts[i] / 5000 for i in range(3)] == pytest.approx([0.2, 0.7, 0.1], abs=0.025)
    values = [draw.uniform(-2, 3) for _ in range(5000)]
    assert -2 <= min(values) < -1.98 and 2.98 < max(values) < 3


def test_mixed_is_made_of_the_shares_that_are_stated():
    clip = torch.rand(1, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clean = degrade(clip, "bicubic", 0)
    kinds = Counter[str]()
    for seed in range(200):
        low = degrade(clip, "mixed", seed)
        off = (low - clean).mul(127.5)
        if torch.equal(low, clean):
            kinds["clean"] += 1
        elif off.square().mean().sqrt() < 6.5:  # noise alone, of at most 6 steps
            kinds["noisy"] += 1
        else:  # of noise like this, H.264 leaves little
            kinds["light"] += 1
    assert abs(kinds["light"] / 200 - MIXED_LIGHT) < 0.1
    share = kinds["noisy"] / (kinds["noisy"] + kinds["clean"])
    assert abs(share - MIXED_NOISY) < 0.1
