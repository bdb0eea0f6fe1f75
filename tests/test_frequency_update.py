"""The frequency-domain update: the public release's numbers, the CPU kernel, the Triton kernel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from frequency_update_fixtures import (
    FILTERS,
    HERE,
    LERP,
    LITERAL,
    RELEASE,
    SIZES,
    YUV,
    blurred_photograph,
    photograph,
    pictures,
)
from safetensors.torch import load_file
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.errors import UsageError
from psssr_fast.ops.frequency_update import (
    _update_on_cuda,
    frequency_update,
    frequency_update_detail_ref,
    frequency_update_ref,
    luma_change,
    update_frequencies,
    update_frequencies_with_detail,
)
from psssr_fast.testing import assert_as_accurate

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8]
ADVERSE = FrequencyUpdate(strength=0.7, border=2, eps=0.05)  # every term of the lerp matters
MUTATIONS = [
    ("(line < height) & (column < width)", "(line < height - 1) & (column < width)"),
    ("(line < height) & (column < width)", "(line < height) & (column < width - 1)"),
    ("- HALO.value + TAPS // 2", "- HALO.value + TAPS // 2 + 1"),
    ("tl.maximum(at + y, 0), height - 1", "tl.maximum(at + y, 0), height - 2"),
    ("tl.where(before, _pick(a, k == HALO)", "tl.where(before, 0.0"),
    ("tl.where(k < end - 64, c, last)", "c"),
    ("high, low, begun, SPLIT", "high, low, done, SPLIT"),
    ("total = tl.dot(low, band, total)", "pass"),
    ("bands_ptr += 4096", "bands_ptr += 0"),
    ("frame * s_frame", "0"),
    ("- gain * low.reshape", "- low.reshape"),
    (" + eps)", ")"),
    ("return strength * towards", "return towards"),
    ("line < height - border", "line < height - border + 1"),
    ("out_plane + out_plane + to", "out_plane + to"),
]


@pytest.fixture
def photo() -> Tensor:
    return photograph()


@pytest.fixture
def blurred() -> Tensor:
    return blurred_photograph()


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
    frames = torch.zeros(1, 3, 8, 8, dtype=torch.int16)
    with pytest.raises(UsageError, match=r"floating point or uint8.*torch\.int16.*0 to 255"):
        update_frequencies(frames, frames, LERP)
    with pytest.raises(UsageError, match=r"one shape and dtype.*float32.*float64"):
        update_frequencies(frames.float(), frames.double(), LERP)


def test_bytes_are_rounded_to_nearest(photo, blurred):
    consistent, sharp = ((255 * x).round().to(torch.uint8) for x in (blurred, photo))
    fused, detail = update_frequencies_with_detail(consistent, sharp, LERP)
    unit = consistent.double() / 255, sharp.double() / 255
    exact = [255 * x for x in frequency_update_detail_ref(*unit, LERP)]
    for actual, value in zip((fused, detail), exact, strict=True):
        assert actual.dtype == torch.uint8
        assert (actual - value).abs().max() <= 0.5001
    assert torch.equal(update_frequencies(consistent, sharp, LERP), fused)
    reference = frequency_update_ref(consistent, sharp, LERP)
    assert (fused.int() - reference.int()).abs().max() <= 1


# The Triton kernel.


def by_triton(consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate) -> tuple:
    return _update_on_cuda(consistent, sharp, settings, detail=True)


def check(
    size=(40, 61),
    dtype=torch.float32,
    device="cpu",
    settings=ADVERSE,
    frames=2,
):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it.

    The rule is about units of white: a difference of lumas is no better known, however small. For
    bytes that is a level, and eager, which rounds the exact number, is half a level off.
    """
    consistent, sharp = pictures(*size, frames=frames, dtype=dtype, device=device)
    actual = by_triton(consistent, sharp, settings)
    eager = frequency_update_detail_ref(consistent, sharp, settings)
    white = 255 if dtype == torch.uint8 else 1
    unit = consistent.double() / white, sharp.double() / white
    exact = [white * x for x in frequency_update_detail_ref(*unit, settings)]
    for ours, theirs, value in zip(actual, eager, exact, strict=True):
        assert ours.dtype == dtype and ours.is_contiguous()
        if dtype == torch.uint8:
            ours, theirs = ours.float(), theirs.float()
        assert_as_accurate(white + ours, white + theirs, white + value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel(dtype, device):
    check((45, 77), dtype, device, LERP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (17, 19), (100, 64), (3, 205)], ids=str)
def test_kernel_at_any_size(size, dtype, device):
    check(size, dtype, device, LITERAL, frames=1)


@pytest.mark.parametrize("settings", [replace(LERP, cutoff=0.3, order=1), replace(LERP, border=40)])
def test_kernel_with_other_settings(settings, device):
    check(device=device, settings=settings, frames=1)


def test_kernel_is_as_accurate_on_a_photograph(photo, blurred, device):
    for dtype in (torch.float16, torch.float32):
        consistent, sharp = (x[..., :70, :150].to(device, dtype) for x in (blurred, photo))
        exact = frequency_update_ref(consistent.double(), sharp.double(), LERP)
        eager = frequency_update_ref(consistent, sharp, LERP)
        assert_as_accurate(by_triton(consistent, sharp, LERP)[0], eager, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_leaves_a_picture_with_itself_alone(dtype, device):
    picture, _ = pictures(35, 70, frames=1, dtype=dtype, device=device)
    assert torch.equal(by_triton(picture, picture.clone(), LERP)[0], picture)


@pytest.mark.parametrize("scale", [1000.0, 1e-6, 0.0])
def test_kernel_at_any_brightness(scale, device):
    consistent, sharp = (scale * x for x in pictures(33, 50, frames=1, device=device))
    fused = by_triton(consistent, sharp, LERP)[0]
    eager = frequency_update_ref(consistent, sharp, LERP)
    exact = frequency_update_ref(consistent.double(), sharp.double(), LERP)
    white = max(1, scale)  # a rounding of what is filtered is a rounding of the difference
    assert_as_accurate(white + fused, white + eager, white + exact)
    assert fused.min() >= 0 and fused.max() <= 1


def test_kernel_does_not_hide_nan(device):
    consistent, sharp = pictures(34, 50, device=device)
    consistent[1, 2, 20, 30] = float("nan")
    fused, detail = by_triton(consistent, sharp, replace(LERP, border=2))
    assert fused[0].isfinite().all()
    assert fused[1, :, 20, 30].isnan().all()
    assert detail[1, 20, 30].isnan()


def test_kernel_takes_views(device):
    storage = pictures(12, 60, frames=2, dtype=torch.uint8, device=device)
    views = [
        [x.transpose(0, 1).contiguous().transpose(0, 1) for x in storage],  # channels outermost
        [x[1:, :, 1:, 3:41] for x in storage],
        [storage[0], storage[1][:1].expand(2, -1, -1, -1)],
        [x.mT for x in storage],
        [x.contiguous(memory_format=torch.channels_last) for x in storage],
    ]
    for consistent, sharp in views:
        expected = by_triton(consistent.contiguous(), sharp.contiguous(), LITERAL)
        for actual, value in zip(by_triton(consistent, sharp, LITERAL), expected, strict=True):
            assert torch.equal(actual, value)


def test_kernel_addresses_more_than_2_to_the_31(device):
    apart = 2**30 + 1024  # the third frame begins beyond what 32 bits hold
    if device.type == "cuda":
        storage = torch.empty(2 * apart + 1024, dtype=torch.uint8, device=device)
    else:
        storage = torch.from_numpy(np.zeros(2 * apart + 1024, np.uint8))  # pages come when written
    view = storage.as_strided((3, 3, 8, 16), (apart, 256, 32, 1))
    consistent, sharp = pictures(8, 16, frames=3, dtype=torch.uint8, device=device)
    view.copy_(consistent)
    expected = by_triton(consistent, sharp, LERP)[0]
    assert torch.equal(by_triton(view, sharp, LERP)[0], expected)
    assert torch.equal(by_triton(sharp, view, LERP)[0], by_triton(sharp, consistent, LERP)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_op_runs_the_kernel_on_cuda(device):
    consistent, sharp = pictures(45, 77, device=device)
    assert torch.equal(
        update_frequencies(consistent, sharp, LERP), by_triton(consistent, sharp, LERP)[0]
    )
    for settings in (RELEASE, replace(LERP, strict=True)):
        expected = frequency_update_ref(consistent, sharp, settings)
        assert torch.equal(update_frequencies(consistent, sharp, settings), expected)
    torch.library.opcheck(
        frequency_update, (consistent.mT, sharp.mT, 0.2, 2, 1.0, False, False, 2, False, 1e-6)
    )


def test_a_clip_fills_a_gpu():
    from psssr_fast.kernels.frequency_update import _steps

    assert [_steps(29, 720, 1280), _steps(1, 720, 1280), _steps(33, 2160, 3840)] == [8, 2, 68]
    assert _steps(1, 1, 1) == 1


@pytest.mark.parametrize(
    ("consistent", "sharp", "message"),
    [
        (torch.zeros(1, 3, 8, 8).double(), torch.zeros(1, 3, 8, 8), r"float64.*other dtypes"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8), r"sharp must be.*\[1, 4, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8), r"consistent must.*not empty"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), r"one shape and dtype.*convert"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8).half(), r"float32.*float16"),
    ],
)
def test_kernel_refuses(consistent, sharp, message):
    with pytest.raises(UsageError, match=message):
        by_triton(consistent, sharp, LERP)
