"""NIQE by a second route, and what it must say about pictures whose quality is known."""

import numpy as np
import pytest
import torch
from metric_oracles import as_clip, blurred, imresize, niqe_of, photo

from psssr_fast.errors import InputError
from psssr_fast.metrics.niqe import PRISTINE, block_features, fit_asymmetric, halve, niqe


@pytest.fixture(scope="module")
def model() -> dict[str, np.ndarray]:
    with np.load(PRISTINE, allow_pickle=False) as content:
        return dict(content)


def test_niqe_by_two_routes(model):
    rng = np.random.default_rng(0)
    pictures = [photo(), np.clip(photo() + rng.normal(0, 0.05, photo().shape), 0, 1)]
    pictures = [np.round(picture * 255) / 255 for picture in pictures]  # one luma by both routes
    expected = [niqe_of(picture, model) for picture in pictures]
    assert niqe(as_clip(*pictures).double()).tolist() == pytest.approx(expected, rel=1e-6)


def test_blur_and_noise_are_less_natural():
    noise = np.random.default_rng(0).normal(0, 0.1, photo().shape)
    sharp, soft, softer, noisy = niqe(
        as_clip(photo(), blurred(photo(), 1), blurred(photo(), 3), photo() + noise)
    ).tolist()
    assert sharp < soft < softer and sharp < noisy


def test_halving_is_matlabs():
    plane = 255 * photo()[:50, :70, 0]
    small = halve(torch.from_numpy(plane)).numpy()
    assert small.shape == (25, 35)
    np.testing.assert_allclose(small, imresize(plane, 0.5), atol=1e-9)


def test_the_fit_finds_the_shape_of_known_distributions():
    rng = np.random.default_rng(0)
    normal, laplace = rng.normal(0, 2, (1, 500, 500)), rng.laplace(0, 3, (1, 500, 500))
    shape, left, right = (x.item() for x in fit_asymmetric(torch.from_numpy(normal)))
    assert shape == pytest.approx(2, abs=0.03)
    assert left == pytest.approx(2 * 2**0.5, rel=0.02) and right == pytest.approx(left, rel=0.02)
    shape, left, _ = (x.item() for x in fit_asymmetric(torch.from_numpy(laplace)))
    assert shape == pytest.approx(1, abs=0.03) and left == pytest.approx(3, rel=0.02)


def test_blocks_without_texture_are_left_out_and_a_flat_frame_has_no_value():
    picture = photo()[:192, :192].copy()
    flat = np.full_like(picture, 0.5)
    picture[:96, :96] = 0.5
    mixed, nothing = niqe(as_clip(picture, flat)).tolist()
    assert np.isfinite(mixed) and np.isnan(nothing)
    plain = block_features(torch.full((96, 192), 100.0, dtype=torch.float64), 96)
    assert plain.shape == (2, 18) and plain.isnan().any(1).all()


def test_the_border_is_cut_before_the_blocks_and_small_frames_are_refused():
    clip = as_clip(photo())
    assert niqe(clip, border=32).item() == niqe(clip[..., 32:-32, 32:-32]).item()
    with pytest.raises(InputError, match="two blocks of 96x96 pixels; got 191x100"):
        niqe(clip[..., :100, :191])
