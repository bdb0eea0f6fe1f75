"""Planes to RGB at output size, against fp64, PyTorch's bicubic and libswscale.

Agreement with libswscale 9.5 on the bundled clips, in 8-bit levels: with its filter (a = -0.6 for
ours of -0.75) 0.25 on average, which is its rounding, and below 1 away from borders. As shipped, at
the input's size, 0.29 on average and at most 4.4, all of it chroma at edges between colours; x4
0.14 to 0.36 after rounding, at most 7 (51.6 to 56.3 dB). What the pipeline does today, converting
to 8-bit RGB first, is 0.22 to 0.25 away, at most 9 (53.9 and 54.7 dB).
"""

import pytest
import torch
import torch.nn.functional as F
from yuv_frames import CLIPS, ROUNDING, real_planes, rms, swscale_rgb

from psssr_fast.errors import UsageError
from psssr_fast.h273 import RED_AND_BLUE
from psssr_fast.kernels import _bicubic
from psssr_fast.ops._yuv import STORAGE, decoding
from psssr_fast.ops.pixel_format import pack_frames_ref, unpack_frames_ref
from psssr_fast.ops.yuv420_to_rgb_resize import (
    CHROMA_SHIFT,
    yuv420_to_rgb_resize,
    yuv420_to_rgb_resize_ref,
)
from psssr_fast.resize import resize_frames
from psssr_fast.testing import assert_as_accurate

MUTATIONS = [
    ("first + place, 0), last)", "first + place, 0), last - 1)"),
    ("tl.maximum(first_row + place, 0)", "tl.maximum(first_row + place, 1)"),
    ("(h + 1) // 2 - 1, (w + 1) // 2 - 1", "h // 2 - 1, w // 2 - 1"),
    ("c_row_weights + place * padded_rows + row_group * ROWS", "c_row_weights + row_group * ROWS"),
    ("zero - chroma_zero", "zero"),
    (" * luma_gain + luma_bias", " * luma_gain"),
    (" + green_u * u[place]", ""),
    ("tl.clamp(blue, -1.0, 1.0)", "blue"),
    ("frame * chroma_frame", "0 * chroma_frame"),
    ("column < width)", "column < width - 1)"),
]
CONVERSIONS = [(CLIPS[0], 1), (CLIPS[0], 4), (CLIPS[1], 1), (CLIPS[1], 2)]
CONVERSION_NAMES = [f"{clip.stem} x{scale}" for clip, scale in CONVERSIONS]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_planes(shape, bits=8, device="cpu"):
    frames, h, w = shape
    half = (frames, (h + 1) // 2, (w + 1) // 2)
    return [
        torch.randint(0, 2**bits, size, device=device).to(STORAGE[bits])
        for size in (shape, half, half)
    ]


def launch(planes, size, matrix=1, full_range=False, bits=8, siting="left", dtype=torch.float32):
    """What the op does on CUDA."""
    from psssr_fast.kernels.yuv420_to_rgb_resize import yuv420_to_rgb_resize_triton

    to_rgb = decoding(matrix, full_range, bits)
    return yuv420_to_rgb_resize_triton(*planes, *size, to_rgb, CHROMA_SHIFT[siting], dtype)


def compare(planes, size, dtype=torch.float32, **coding):
    exact = yuv420_to_rgb_resize_ref(*planes, *size, dtype=torch.float64, **coding)
    eager = yuv420_to_rgb_resize_ref(*planes, *size, dtype=dtype, **coding)
    assert_as_accurate(launch(planes, size, dtype=dtype, **coding), eager=eager, exact=exact)


def check(shape=(2, 5, 7), size=(13, 19), dtype=torch.float32, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    compare(random_planes(shape, device=device), size, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1, 1), (1, 1)),
        ((1, 1, 2), (5, 3)),
        ((2, 9, 10), (36, 40)),  # x4, the product's: eight 16-bit outputs a thread
        ((2, 4, 13), (6, 14)),  # x1.5 and x1.08, not aligned
        ((3, 5, 33), (5, 33)),
        ((17, 2, 9), (4, 32)),  # frames cross the border between programs
        ((1, 3, 5), (48, 80)),  # x16
    ],
    ids=str,
)
def test_kernel(shape, size, dtype, device):
    check(shape, size, dtype, device)


@pytest.mark.parametrize("siting", ["left", "center"])
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_kernel_in_every_coding(matrix, bits, full_range, siting, device):
    coding = {"matrix": matrix, "bits": bits, "full_range": full_range, "siting": siting}
    compare(random_planes((1, 3, 6), bits, device), (12, 24), **coding)


def test_kernel_takes_views(device):
    y = random_planes((4, 12, 19), device=device)[0][:, ::2, :-3]
    _, u, v = random_planes((4, 6, 16), device=device)
    u = F.pad(u, (0, 24))[..., :8]  # rows padded, as decoders do
    v = v.mT.contiguous().mT  # columns apart
    assert y.stride(1) == 38 and u.stride(1) == 32 and v.stride(2) == 3
    compare([y, u, v], (24, 64))


def test_kernel_of_no_frames_launches_nothing(device):
    assert launch(random_planes((0, 4, 6), device=device), (8, 12)).shape == (0, 3, 8, 12)


def test_gray_is_enlarged_like_any_picture():
    y, u, v = random_planes((2, 7, 10))
    gray = yuv420_to_rgb_resize_ref(
        y, u.fill_(128), v.fill_(128), 28, 33, full_range=True, dtype=torch.float64
    )
    picture = y[:, None].expand(-1, 3, -1, -1).double() * 2 / 255 - 1
    torch.testing.assert_close(gray, resize_frames(picture, 28, 33))


def test_centered_chroma_is_enlarged_from_its_own_grid():
    y, u, v = random_planes((1, 6, 8))
    y.fill_(128)
    u, v = u // 4 + 96, v // 4 + 96  # nothing to clamp
    out = yuv420_to_rgb_resize_ref(
        y, u, v, 24, 32, full_range=True, siting="center", dtype=torch.float64
    )
    red, green, blue = ((out + 1) * 127.5).unbind(1)
    cb, cr = (
        F.interpolate(plane[None].double() - 128, (24, 32), mode="bicubic")[0] for plane in (u, v)
    )
    torch.testing.assert_close(red, 128 + 1.5748 * cr)
    torch.testing.assert_close(blue, 128 + 1.8556 * cb)
    torch.testing.assert_close(0.2126 * red + 0.7152 * green + 0.0722 * blue, red * 0 + 128)


@pytest.mark.parametrize(("siting", "shift"), [("left", 0.0), ("center", 0.5)])
@pytest.mark.parametrize("scale", [1, 3, 4])
def test_chroma_lies_where_its_siting_says(monkeypatch, siting, shift, scale):
    monkeypatch.setattr(_bicubic, "SHARPNESS", -0.5)  # the only one that keeps ramps straight
    size = 19, 25
    y, u, v = (torch.full_like(plane, 128) for plane in random_planes((1, *size)))
    u += 2 * torch.arange(13, dtype=torch.uint8)  # one level a luma pixel
    v += 2 * torch.arange(10, dtype=torch.uint8)[:, None]
    large = [scale * side for side in size]
    out = yuv420_to_rgb_resize_ref(
        y, u, v, *large, full_range=True, siting=siting, dtype=torch.float64
    )
    red, _, blue = ((out + 1) * 127.5 - 128).unbind(1)
    down, right = ((torch.arange(side, dtype=torch.float64) + 0.5) / scale - 0.5 for side in large)
    inside = (0, slice(4 * scale, -5 * scale), slice(4 * scale, -5 * scale))  # all taps on the ramp
    torch.testing.assert_close(blue[inside], 1.8556 * (right - shift).expand(large)[inside[1:]])
    torch.testing.assert_close(
        red[inside], 1.5748 * (down[:, None] - 0.5).expand(large)[inside[1:]]
    )


@pytest.mark.parametrize(
    ("matrix", "levels", "color"),
    [
        (6, (81, 90, 240), (1, -1, -1)),  # red of BT.601, by the books
        (6, (145, 54, 34), (-1, 1, -1)),
        (6, (41, 240, 110), (-1, -1, 1)),
        (1, (63, 102, 240), (1, -1, -1)),  # and of BT.709
        (1, (173, 42, 26), (-1, 1, -1)),
        (1, (32, 240, 118), (-1, -1, 1)),
        (1, (235, 128, 128), (1, 1, 1)),
        (1, (16, 128, 128), (-1, -1, -1)),
    ],
)
def test_known_colours(matrix, levels, color, device):
    planes = [torch.full((1, 2, 2), level, dtype=torch.uint8, device=device) for level in levels]
    out = yuv420_to_rgb_resize(*(plane[:, :1, :1] for plane in planes), 3, 3, matrix)
    # The books round levels: half a level of luma and of chroma, seen through the matrix.
    slack = 1 / 219 + decoding(matrix, False, 8).blue_u / 2
    expected = torch.tensor(color, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    assert (out - expected).abs().max() <= slack


def in_levels(rgb):
    return (rgb + 1) * 127.5


@pytest.mark.parametrize(("clip", "scale"), CONVERSIONS, ids=CONVERSION_NAMES)
@pytest.mark.parametrize(
    ("matrix", "full_range", "bits"),
    [(1, False, 8), (6, False, 8), (1, True, 8), (9, False, 10), (1, True, 10)],
)
def test_libswscale_agrees_given_its_filter(monkeypatch, clip, scale, matrix, full_range, bits):
    monkeypatch.setattr(_bicubic, "SHARPNESS", -0.6)
    planes = real_planes(clip, bits)
    h, w = planes[0].shape[1:]
    theirs = swscale_rgb(planes, matrix, full_range, scale)
    ours = yuv420_to_rgb_resize_ref(
        *planes, scale * h, scale * w, matrix, full_range, bits, dtype=torch.float64
    )
    difference = in_levels(ours) - theirs
    # It takes 10 bits of full range to 8 by 1 / 4, not 255 / 1023: 3/4 of a level at white.
    gain = 255 * (1023 / 1020 - 1) if full_range and bits == 10 else 0.0
    # At borders it leaves out the weights outside if they are small, here up to 6 luma pixels in.
    inside = (..., slice(6 * scale, -6 * scale), slice(6 * scale, -6 * scale))
    assert difference[inside].abs().max() <= 1 + gain
    assert rms(difference) <= 2 * ROUNDING + gain


@pytest.mark.parametrize(("clip", "scale"), CONVERSIONS, ids=CONVERSION_NAMES)
def test_libswscale_and_todays_route_are_within_a_level_rms(clip, scale):
    planes = real_planes(clip)
    h, w = planes[0].shape[1:]
    size = scale * h, scale * w
    ours = pack_frames_ref(yuv420_to_rgb_resize_ref(*planes, *size, matrix=6)).int()
    assert rms(ours - swscale_rgb(planes, 6, False, scale).permute(0, 2, 3, 1)) <= 1
    converted = unpack_frames_ref(swscale_rgb(planes, 6, False).permute(0, 2, 3, 1))
    assert rms(ours - pack_frames_ref(resize_frames(converted, *size))) <= 1


def test_libswscale_agrees_where_chroma_is_flat():
    planes = real_planes(CLIPS[1])
    h, w = planes[0].shape[1:]
    ours = in_levels(yuv420_to_rgb_resize_ref(*planes, h, w, matrix=6))
    difference = (ours - swscale_rgb(planes, 6, False)).abs().amax(1)
    flat = torch.ones(1, h, w, dtype=torch.bool)
    for plane in planes[1:]:
        levels = plane[:, None].float()
        high, low = F.max_pool2d(levels, 5, 1, 2), -F.max_pool2d(-levels, 5, 1, 2)
        flat &= F.interpolate(high - low, (h, w))[:, 0] == 0
    assert flat.sum() >= 1000
    assert difference[flat].max() <= 1


def test_odd_sizes_are_even_ones_less_a_row_and_a_column():
    # libswscale spreads the chroma plane over the whole of an odd picture: a drift that reaches a
    # luma pixel, 44 levels on these clips. So it is asked about even ones only.
    planes = random_planes((1, 12, 20))
    even = yuv420_to_rgb_resize_ref(*planes, 12, 20)
    odd = yuv420_to_rgb_resize_ref(planes[0][:, :-1, :-1], *planes[1:], 11, 19)
    torch.testing.assert_close(odd, even[..., :-1, :-1], rtol=0, atol=0)


def test_op_is_registered_correctly(device):
    y, u, v = random_planes((2, 5, 6), device=device)
    y = y.mT.contiguous().mT
    torch.library.opcheck(yuv420_to_rgb_resize, (y, u, v, 10, 13))
    torch.library.opcheck(
        yuv420_to_rgb_resize,
        (y.short(), u.short(), v.short(), 5, 6, 9, True, 10, "center", torch.bfloat16),
    )
    for dtype in DTYPES:
        assert yuv420_to_rgb_resize(y, u, v, 5, 6, dtype=dtype).dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": 0}, r"matrix 0 is not supported; need one of H.273's 1, 4, 5, 6, 7, 9"),
        ({"bits": 12}, r"12 bits are not supported; need 8 or 10"),
        ({"bits": 10}, r"luma of 10 bits must be torch.int16 .* got torch.uint8 \[2, 5, 6\]; "),
        ({"siting": "top"}, r"siting must be 'left' or 'center'; got 'top'"),
        ({"height": 4}, r"enlarges only; got 6x5 to 12x4. Convert at 6x5, then shrink with"),
        ({"width": 5}, r"enlarges only"),
        ({"luma": torch.zeros(2, 0, 6, dtype=torch.uint8)}, r"not empty"),
        ({"luma": torch.zeros(5, 6, dtype=torch.uint8)}, r"must be torch.uint8 \[T, h, w\]"),
        ({"chroma_u": torch.zeros(2, 2, 3, dtype=torch.uint8)}, r"must be torch.uint8 \[2, 3, 3\]"),
        ({"chroma_v": torch.zeros(2, 3, 3)}, r"got torch.float32 \[2, 3, 3\]"),
        ({"dtype": torch.float64}, r"dtype must be float32, float16 or bfloat16; got"),
    ],
    ids=lambda change: str(next(iter(change))) if isinstance(change, dict) else "",
)  # fmt: skip
def test_refusals(change, message):
    y, u, v = random_planes((2, 5, 6))
    arguments = {"luma": y, "chroma_u": u, "chroma_v": v, "height": 10, "width": 12}
    with pytest.raises(UsageError, match=message):
        yuv420_to_rgb_resize(**arguments | change)


def test_every_matrix_of_the_reader_is_known():
    from psssr_fast.video.color import _MATRICES_OF_SWSCALE

    assert set(RED_AND_BLUE) == _MATRICES_OF_SWSCALE
