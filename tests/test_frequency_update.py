"""The frequency-domain update: the public release's numbers, the readings, and the CPU kernel."""

from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.errors import UsageError
from psssr_fast.ops.frequency_update import (
    butterworth,
    detail_weight,
    fft_low_pass,
    frequency_update,
    frequency_update_detail_ref,
    frequency_update_ref,
    low_frequency_drift,
    low_pass,
    luma,
    luma_change,
    separable_low_pass,
    spatial_low_pass,
    update_frequencies,
    update_frequencies_with_detail,
)
from psssr_fast.testing import assert_as_accurate

HERE = Path(__file__).parent
LERP = FrequencyUpdate()
LITERAL = FrequencyUpdate(strength=0.6, alpha_mode="literal", border=2)
RELEASE = FrequencyUpdate(alpha_mode="literal", filter="fft", border=2)
FILTERS = ["spatial19", "fft"]
SIZES = [(45, 77), (1, 1), (5, 300), (17, 19), (64, 96)]
YUV = torch.tensor(  # the release's coefficients, to and from
    [
        [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]],
        [[1, 0, 1.13983], [1, -0.39465, -0.5806], [1, 2.03211, 0]],
    ],
    dtype=torch.float64,
)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A photograph, fp64 ``[1, 3, 256, 320]`` in [0, 1]."""
    with av.open(HERE / "data/photo_256.png") as file:
        pixels = next(file.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255


@pytest.fixture(scope="module")
def blurred(photo) -> Tensor:
    """What a base model would make of it: the same picture with less detail."""
    return F.interpolate(F.avg_pool2d(photo, 4), scale_factor=4, mode="bicubic").clamp(0, 1)


def pictures(*size: int, frames: int = 2) -> tuple[Tensor, Tensor]:
    return tuple(torch.rand(2, frames, 3, *size))


def high_pass(picture: Tensor, settings: FrequencyUpdate = LERP) -> Tensor:
    return luma(picture) - low_pass(luma(picture), settings)


# The release: golden numbers made by running it.


@pytest.fixture(params=range(3), ids=lambda n: f"case{n}")
def golden(request) -> dict[str, Tensor]:
    case = f"{request.param}."
    tensors = load_file(HERE / "golden/fdu.safetensors")
    return {name.removeprefix(case): t for name, t in tensors.items() if name.startswith(case)}


@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0])
def test_released_fusion_differs_only_by_its_rounded_yuv_matrices(golden, alpha):
    fused = update_frequencies(
        golden["consistent"], golden["sharp"], replace(RELEASE, strength=alpha)
    )
    error = YUV[1] @ YUV[0] - torch.eye(3)
    bound = max(error.clamp(min=0).sum(1).max(), -error.clamp(max=0).sum(1).min()).item()
    assert bound < 2.05e-5  # 0.0052 of an 8-bit level
    rounding = 8 * torch.finfo(torch.float32).eps  # of its chain of eight fp32 operations
    assert (fused - golden[f"fused.alpha{alpha}"]).abs().max().item() <= bound + rounding


@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0])
def test_released_fusion_through_its_own_matrices_is_equal_to_rounding(golden, alpha):
    consistent, sharp = golden["consistent"].double(), golden["sharp"].double()
    change = luma_change(consistent, sharp, replace(RELEASE, strength=alpha))
    round_trip = torch.einsum("ij,jk,tkhw->tihw", YUV[1], YUV[0], consistent)
    exact = (round_trip + change[:, None]).clamp(0, 1)
    error = (exact - golden[f"fused.alpha{alpha}"]).abs().max().item()
    assert error <= 8 * torch.finfo(torch.float32).eps


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


# Colours, edges, kinds of input; through the op, so on the CPU through the compiled kernel.


@pytest.mark.parametrize("settings", [LERP, LITERAL, RELEASE], ids=["lerp", "literal", "fft"])
@pytest.mark.parametrize("size", SIZES)
def test_grey_stays_grey(size, settings):
    consistent, sharp = (picture[:, :1].expand(-1, 3, -1, -1) for picture in pictures(*size))
    fused = update_frequencies(consistent, sharp, settings)
    assert torch.equal(fused[:, 0], fused[:, 1])
    assert torch.equal(fused[:, 0], fused[:, 2])


def test_only_luma_changes(photo, blurred):
    fused = update_frequencies(blurred.float(), photo.float(), LERP).double()
    unclamped = ((fused > 0) & (fused < 1)).all(dim=1)
    before, after = (torch.einsum("ij,tjhw->tihw", YUV[0], x) for x in (blurred, fused))
    change = (after - before).movedim(1, -1)[unclamped]
    assert change[:, 0].abs().max() > 0.05
    assert change[:, 1:].abs().max() < 1e-5  # the release's U and V coefficients sum to 1e-5


@pytest.mark.parametrize("border", [0, 1, 2, 8, 9, 40])
def test_border_keeps_the_base(border):
    consistent, sharp = pictures(17, 19)
    free = update_frequencies(consistent, sharp, LERP)
    fused = update_frequencies(consistent, sharp, replace(LERP, border=border))
    inside = torch.zeros(17, 19, dtype=torch.bool)
    inside[border : 17 - border, border : 19 - border] = True
    assert torch.equal(fused, torch.where(inside, free, consistent))


def test_output_is_clamped():
    consistent, sharp = pictures(30, 30)
    fused = update_frequencies(2 * consistent - 0.5, sharp, replace(LERP, border=2))
    assert (fused.min().item(), fused.max().item()) == (0.0, 1.0)


def test_nan_is_not_hidden():
    consistent, sharp = pictures(40, 60)
    consistent[1, 2, 20, 30] = float("nan")
    fused = update_frequencies(consistent, sharp, LERP)
    assert fused[0].isfinite().all()
    assert fused[1, :, 20, 30].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_fp32(dtype):
    consistent, sharp = (picture.to(dtype) for picture in pictures(45, 77))
    fused = update_frequencies(consistent, sharp, LERP)
    exact = frequency_update_ref(consistent.double(), sharp.double(), LERP)
    assert fused.dtype == dtype
    assert (fused.double() - exact).abs().max() <= 0.51 * torch.finfo(dtype).eps


@pytest.mark.parametrize("settings", [LERP, LITERAL], ids=["lerp", "literal"])
@pytest.mark.parametrize("size", SIZES)
def test_op_is_as_accurate_as_eager(size, settings):
    consistent, sharp = pictures(*size, frames=3)
    actual = update_frequencies_with_detail(consistent, sharp, settings)
    eager = frequency_update_detail_ref(consistent, sharp, settings)
    exact = frequency_update_detail_ref(consistent.double(), sharp.double(), settings)
    assert_as_accurate(actual[0], eager[0], exact[0])
    # A difference of lumas is known to a rounding of white, however small it is.
    assert_as_accurate(1 + actual[1], 1 + eager[1], 1 + exact[1])
    assert torch.equal(update_frequencies(consistent, sharp, settings), actual[0])


def test_op_is_as_accurate_as_eager_on_a_photograph(photo, blurred):
    consistent, sharp = blurred.float(), photo.float()
    assert_as_accurate(
        update_frequencies(consistent, sharp, LERP),
        frequency_update_ref(consistent, sharp, LERP),
        frequency_update_ref(consistent.double(), sharp.double(), LERP),
    )


def test_result_does_not_depend_on_threads():
    consistent, sharp = pictures(100, 300, frames=3)  # the second thread begins inside a frame
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = update_frequencies_with_detail(consistent, sharp, LERP)
        torch.set_num_threads(2)
        together = update_frequencies_with_detail(consistent, sharp, LERP)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


@pytest.mark.parametrize("settings", [LERP, LITERAL, RELEASE, replace(LERP, strict=True)], ids=str)
def test_detail_map_is_the_change_of_luma(settings):
    consistent, sharp = pictures(45, 77)
    _, detail = update_frequencies_with_detail(consistent, sharp, settings)
    exact = luma_change(consistent.double(), sharp.double(), settings).abs()
    assert (detail.shape, detail.dtype) == ((2, 45, 77), torch.float32)
    assert (detail - exact).abs().max() < 2e-6


def test_non_contiguous_input():
    consistent, sharp = (picture.mT for picture in pictures(45, 77))
    fused = update_frequencies(consistent, sharp, LERP)
    assert fused.is_contiguous()
    assert torch.equal(fused, update_frequencies(consistent.contiguous(), sharp.contiguous(), LERP))


@pytest.mark.parametrize("fft", [False, True], ids=FILTERS)
def test_op_is_registered_correctly(fft):
    consistent, sharp = pictures(17, 19)
    arguments = (0.2, 2, 1.0, False, fft, 2, False, 1e-6)
    torch.library.opcheck(frequency_update, (consistent.mT, sharp.mT, *arguments))


@pytest.mark.parametrize(
    ("consistent", "sharp", "message"),
    [
        ((1, 3, 8, 8), (1, 3, 8, 9), r"one shape and dtype.*\[1, 3, 8, 8\].*\[1, 3, 8, 9\]"),
        ((1, 4, 8, 8), (1, 4, 8, 8), r"consistent must be .*\[T, 3, H, W\].*\[1, 4, 8, 8\]"),
        ((1, 3, 8, 8), (3, 8, 8), r"sharp must be .*\[T, 3, H, W\].*\[3, 8, 8\]"),
        ((0, 3, 8, 8), (0, 3, 8, 8), r"empty, \[0, 3, 8, 8\].*at least one frame"),
    ],
)
def test_wrong_shapes_are_refused(consistent, sharp, message):
    with pytest.raises(UsageError, match=message):
        update_frequencies(torch.zeros(consistent), torch.zeros(sharp), LERP)
    with pytest.raises(UsageError, match=message):
        frequency_update_ref(torch.zeros(consistent), torch.zeros(sharp), LERP)


def test_wrong_dtypes_are_refused():
    frames = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"floating point.*torch\.uint8.*\[0, 1\]"):
        update_frequencies(frames, frames, LERP)
    with pytest.raises(UsageError, match=r"one shape and dtype.*float32.*float64"):
        update_frequencies(frames.float(), frames.double(), LERP)
