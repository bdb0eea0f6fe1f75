"""The filters of the frequency-domain update, and the readings of the paper, in the reference."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from frequency_update_fixtures import (
    FILTERS,
    LERP,
    LITERAL,
    SIZES,
    YUV,
    blurred_photograph,
    photograph,
    pictures,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.errors import UsageError
from psssr_fast.ops.frequency_update import (
    butterworth,
    detail_weight,
    fft_low_pass,
    frequency_update_ref,
    low_frequency_drift,
    low_pass,
    luma,
    luma_change,
    separable_low_pass,
    spatial_low_pass,
    update_frequencies,
)


@pytest.fixture
def photo() -> Tensor:
    return photograph()


@pytest.fixture
def blurred() -> Tensor:
    return blurred_photograph()


def high_pass(picture: Tensor, settings: FrequencyUpdate = LERP) -> Tensor:
    return luma(picture) - low_pass(luma(picture), settings)


# The filters.


@pytest.mark.parametrize("size", [(48, 64), (45, 77), (44, 77), (1, 1), (2, 3)])
def test_fft_low_pass_equals_the_full_fft(size):
    y = torch.rand(2, *size, dtype=torch.float64)
    shifted = torch.fft.fftshift(torch.fft.fft2(y, norm="ortho"), dim=(-2, -1))
    filtered = shifted * torch.fft.fftshift(butterworth(*size, 0.2, 2))
    unshifted = torch.fft.ifftshift(filtered, dim=(-2, -1))
    naive = torch.fft.ifft2(unshifted, norm="ortho").real
    assert (fft_low_pass(y, 0.2, 2) - naive).abs().max() < 1e-14


@pytest.mark.parametrize("size", SIZES)
def test_spatial_low_pass_equals_a_convolution_with_repeated_edges(size):
    y = torch.rand(2, *size, dtype=torch.float64)
    columns, rows = separable_low_pass(0.2, 2)
    taps = (columns.T @ rows)[None, None]
    naive = F.conv2d(F.pad(y[:, None], (9,) * 4, mode="replicate"), taps)[:, 0]
    assert (spatial_low_pass(y, 0.2, 2) - naive).abs().max() < 1e-14


def test_spatial_filter_fuses_like_the_fft_filter_at_the_released_window_size(photo, blurred):
    # Mirrored to 720x1280, for the release's cutoff depends a little on the size of the window.
    columns = [torch.cat([x, x.flip(2), x], 2)[:, :, :720] for x in (blurred, photo)]
    consistent, sharp = (torch.cat([x, x.flip(3), x, x.flip(3)], 3) for x in columns)
    assert sharp.shape == (1, 3, 720, 1280)
    spatial, fft = (
        frequency_update_ref(consistent, sharp, FrequencyUpdate(filter=name)) for name in FILTERS
    )
    assert (fft - consistent).abs().max() > 50 / 255
    error = (spatial - fft)[..., 20:-20, 20:-20]  # the FFT wraps around at the edges
    assert error.abs().max() <= 0.1 / 255


def test_taps_have_dc_gain_1_and_rank_4_changes_them_little():
    columns, rows = separable_low_pass(0.2, 2)
    assert (columns.T @ rows).sum().item() == pytest.approx(1, abs=1e-14)
    exact = torch.fft.fftshift(torch.fft.ifft2(butterworth(961, 961, 0.2, 2)).real)
    exact = exact[471:490, 471:490]
    values = torch.linalg.svdvals(exact)
    assert values[:5].tolist() == pytest.approx(
        [values[0].item() * v for v in (1, 0.0355, 0.0275, 0.0022, 0.00055)], rel=0.02
    )
    assert (columns.T @ rows - exact / exact.sum()).abs().sum() < 0.003


@pytest.mark.parametrize("settings", [LERP, LITERAL], ids=["lerp", "literal"])
def test_constant_pictures_keep_the_base(settings):
    consistent, sharp = torch.full((2, 3, 30, 41), 0.25), torch.full((2, 3, 30, 41), 0.75)
    fused = update_frequencies(consistent, sharp, settings)
    assert (fused - consistent).abs().max() <= 1e-6


def test_spatial_filter_does_not_depend_on_the_window(photo, blurred):
    whole = frequency_update_ref(blurred, photo, LERP)[..., 50:150, 60:200]
    window = frequency_update_ref(blurred[..., 50:150, 60:200], photo[..., 50:150, 60:200], LERP)
    inside = slice(9, -9)
    torch.testing.assert_close(
        window[..., inside, inside], whole[..., inside, inside], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(("cutoff", "order"), [(0.05, 2), (0.1, 2), (0.2, 6)])
def test_a_filter_that_does_not_fit_19x19_is_refused(cutoff, order):
    consistent, sharp = pictures(20, 20)
    settings = FrequencyUpdate(cutoff=cutoff, order=order)
    with pytest.raises(UsageError, match=f"cutoff={cutoff}, order={order}.*filter='fft'"):
        update_frequencies(consistent, sharp, settings)
    update_frequencies(consistent, sharp, replace(settings, filter="fft"))


# The readings of the paper.


@pytest.mark.parametrize("filter", FILTERS)
def test_lerp_and_literal_agree_at_alpha_1(photo, blurred, filter):
    lerp = FrequencyUpdate(strength=1.0, alpha_mode="lerp", filter=filter)
    literal = replace(lerp, alpha_mode="literal")
    difference = luma_change(blurred, photo, lerp) - luma_change(blurred, photo, literal)
    assert difference.abs().max() < 1e-15


@pytest.mark.parametrize("filter", FILTERS)
def test_lerp_at_alpha_0_is_the_identity(filter):
    consistent, sharp = pictures(45, 77)
    fused = update_frequencies(consistent, sharp, FrequencyUpdate(strength=0, filter=filter))
    assert torch.equal(fused, consistent)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_lerp_of_a_picture_with_itself_is_the_identity(photo, filter, strength):
    settings = FrequencyUpdate(strength=strength, filter=filter)
    assert torch.equal(update_frequencies(photo.float(), photo.float(), settings), photo.float())


@pytest.mark.parametrize("filter", FILTERS)
def test_literal_alpha_attenuates_the_high_band_of_a_picture_with_itself(photo, filter):
    settings = FrequencyUpdate(strength=0.6, alpha_mode="literal", filter=filter)
    high = high_pass(photo, settings)
    changed = high + luma_change(photo, photo, settings)
    torch.testing.assert_close(changed, 0.6 * high, rtol=0, atol=1e-15)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_blend_has_a_closed_form_and_lies_between_its_sources(consistent, sharp):
    before, after = torch.tensor([consistent, sharp], dtype=torch.float64)
    weight = detail_weight(before, after, eps=1e-6).item()
    assert 0 <= weight < 1
    blend = consistent + weight * (sharp - consistent)
    assert min(consistent, sharp) - 1e-15 <= blend <= max(consistent, sharp) + 1e-15
    exact = consistent + sharp  # of opposite signs, or both 0
    if consistent * sharp > 0:
        exact = (consistent**2 + sharp**2) / (consistent + sharp)
    assert abs(blend - exact) <= 2e-6  # eps lowers the weight by eps / (size of both + eps)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_frames_give_no_nan(filter, level):
    flat = torch.full((1, 3, 33, 21), level)  # odd: only then does the FFT's grid hold frequency 0
    for settings in (LERP, LITERAL):
        fused = update_frequencies(flat, flat, replace(settings, filter=filter))
        assert fused.isfinite().all()
        assert (fused - flat).abs().max() <= 1e-6


@pytest.mark.parametrize("filter", FILTERS)
def test_drift_is_the_low_frequency_part_of_the_change(photo, blurred, filter):
    settings = FrequencyUpdate(filter=filter)
    fused = frequency_update_ref(blurred, photo, settings)
    drift = low_frequency_drift(blurred, fused, settings)
    before, after = (torch.einsum("tchw,c->thw", x, YUV[0, 0]) for x in (blurred, fused))
    direct = 255 * (low_pass(after, settings) - low_pass(before, settings))
    assert drift.rms == pytest.approx(direct.square().mean().sqrt().item(), rel=1e-9)
    assert drift.maximum == pytest.approx(direct.abs().max().item(), rel=1e-9)
    assert drift.rms > 0.1  # the update is not perfect, and says so


@pytest.mark.parametrize("filter", FILTERS)
def test_strict_reduces_the_drift(photo, blurred, filter):
    loose = FrequencyUpdate(filter=filter)
    strict = replace(loose, strict=True)
    drifts = [
        low_frequency_drift(blurred, update_frequencies(blurred, photo, settings), settings)
        for settings in (loose, strict)
    ]
    assert drifts[1].rms < drifts[0].rms
    assert drifts[1].maximum < drifts[0].maximum


def test_strict_high_passes_the_change(photo, blurred):
    change = luma_change(blurred, photo, LERP)
    strict = luma_change(blurred, photo, replace(LERP, strict=True))
    assert torch.equal(strict, change - low_pass(change, LERP))
