"""RGB to planes, against fp64, libswscale and the way back.

Agreement with what the writer makes today (libswscale 9.5, bicubic chroma), on the bundled pictures
in 8-bit levels: luma at most 1 and 0.01 on average; chroma at most 3 and 0.2 on average (54.9 to
68.4 dB). Its chroma filter is wider and sharper: the way to RGB and back costs 0.3 to 0.8 dB less.
"""

import av
import numpy as np
import pytest
import torch
from yuv_frames import CLIPS, ROOT, real_planes, rms, swscale_planes, swscale_rgb

from psssr_fast.errors import UsageError
from psssr_fast.h273 import RED_AND_BLUE
from psssr_fast.kernels._bicubic import bicubic_taps
from psssr_fast.ops._yuv import STORAGE, decoding, encoding
from psssr_fast.ops.pixel_format import unpack_frames_ref
from psssr_fast.ops.rgb_to_yuv420 import rgb_to_yuv420, rgb_to_yuv420_ref, unrounded_yuv420
from psssr_fast.ops.yuv420_to_rgb_resize import yuv420_to_rgb_resize_ref

MUTATIONS = [
    ("tl.where(x > -1.0, x, -1.0)", "x"),
    ("tl.where(right_inside, odd, even)", "odd"),
    ("+ 2.0 * even", "+ even"),
    ("tl.maximum(group * GROUP - 1, 0)", "group * GROUP"),
    ("tl.minimum(2 * pair + 1, height - 1)", "2 * pair"),
    ("tl.minimum(u, peak)", "u"),
    ("tl.join(odd, even)", "tl.join(even, odd)"),
    ("0xFFFF", "0xFFFE"),
    ("v += v_weight", "v += u_weight"),
    ("y_ptr + (frame * height + 2 * pair)", "y_ptr + (0 * frame + 2 * pair)"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_picture(shape, dtype=torch.float32, device="cpu"):
    """Noise beyond [-1, 1], with the purest blue and red in its corners."""
    frames, height, width = shape
    picture = 0.8 * torch.randn(frames, 3, height, width, dtype=dtype, device=device)
    for channel, corner in ((2, picture[..., :2, :3]), (0, picture[..., -2:, -3:])):
        corner.fill_(-1)
        corner[:, channel] = 1
    return picture


def launch(picture, matrix=1, full_range=False, bits=8):
    """What the op does on CUDA."""
    from psssr_fast.kernels.rgb_to_yuv420 import rgb_to_yuv420_triton

    return rgb_to_yuv420_triton(picture, encoding(matrix, full_range, bits), bits)


def compare(picture, matrix=1, full_range=False, bits=8):
    """Every level is the nearest whole number, up to twice the reference's error before rounding.

    Where that leaves the choice between two, the kernel and the reference may choose differently.
    """
    exact = unrounded_yuv420(picture.double(), matrix, full_range, bits)
    eager = unrounded_yuv420(picture, matrix, full_range, bits)
    found = launch(picture, matrix, full_range, bits)
    for plane, near, true in zip(found, eager, exact, strict=True):
        assert (plane.shape, plane.dtype) == (true.shape, STORAGE[bits])
        slack = 2 * (near - true).abs().max().item() + torch.finfo(torch.float32).eps * 2**bits
        assert (plane - true).abs().max() <= 0.5 + slack


def check(shape=(2, 5, 7), dtype=torch.float32, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    compare(random_picture(shape, dtype, device), full_range=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (2, 1, 9), (1, 6, 2), (2, 4, 16), (1, 3, 33), (3, 2, 530), (140, 3, 4)],
    ids=str,
)
def test_kernel(shape, dtype, device):
    check(shape, dtype, device)


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_kernel_in_every_coding(matrix, bits, full_range, device):
    compare(random_picture((1, 4, 10), device=device), matrix, full_range, bits)


def test_kernel_takes_views(device):
    picture = random_picture((2, 9, 24), torch.float16, device)
    compare(picture[:, :, 1:, 2:13])
    compare(picture[..., ::2])
    compare(picture.flip(1))
    compare(picture.permute(2, 1, 0, 3))


@pytest.mark.parametrize("shape", [(0, 3, 4, 6), (2, 3, 0, 6), (2, 3, 4, 0)], ids=str)
def test_nothing_in_nothing_out(shape, device):
    picture = torch.empty(shape, device=device)
    sizes = [plane.shape for plane in launch(picture)]
    assert sizes == [plane.shape for plane in rgb_to_yuv420_ref(picture)]
    assert all(plane.numel() == 0 for plane in rgb_to_yuv420(picture))


def test_nan_is_black_and_infinity_white(device):
    picture = torch.tensor([float("nan"), float("inf"), float("-inf")], device=device)
    picture = picture.view(1, 1, 1, 3).repeat_interleave(4, 3).expand(1, 3, 2, 12)
    for y, u, v in (launch(picture), rgb_to_yuv420_ref(picture)):
        assert y[0, 0].tolist() == [16] * 4 + [235] * 4 + [16] * 4
        assert u.unique().tolist() == v.unique().tolist() == [128]


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", RED_AND_BLUE)
def test_encoding_is_the_inverse_of_decoding(matrix, full_range, bits):
    to_rgb = decoding(matrix, full_range, bits)
    gain = to_rgb.luma_gain
    decode = [[gain, 0, to_rgb.red_v], [gain, to_rgb.green_u, to_rgb.green_v],
              [gain, to_rgb.blue_u, 0]]  # fmt: skip
    rows = torch.tensor(encoding(matrix, full_range, bits), dtype=torch.float64)
    product = torch.tensor(decode, dtype=torch.float64) @ rows[:, :3]
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64))
    assert rows[0, 3] * gain + to_rgb.luma_bias == pytest.approx(0)
    assert rows[1, 3] == rows[2, 3] == to_rgb.chroma_zero


def test_chroma_is_averaged_around_even_columns():
    impulses = torch.zeros(1, 3, 6, 9)
    impulses[0, 2, 2, 4] = impulses[0, 0, 3, 5] = 1.0
    _, u, v = unrounded_yuv420(impulses, 1, True, 8)
    assert ((u[0, 1] - 128) / (u[0, 1, 2] - 128)).tolist()[1:4] == pytest.approx([0, 1, 0], abs=0.3)
    blue_to_u, red_to_v = encoding(1, True, 8)[1][2], encoding(1, True, 8)[2][0]
    blue_to_v, red_to_u = encoding(1, True, 8)[2][2], encoding(1, True, 8)[1][0]
    expected_u = [0, 0, blue_to_u * 2 + red_to_u, red_to_u, 0]
    expected_v = [0, 0, blue_to_v * 2 + red_to_v, red_to_v, 0]
    assert ((u[0, 1] - 128) * 8).tolist() == pytest.approx(expected_u, abs=1e-4)
    assert ((v[0, 1] - 128) * 8).tolist() == pytest.approx(expected_v, abs=1e-4)


def pixels_of(name):
    if name.suffix == ".png":
        with av.open(str(name)) as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")
    return swscale_rgb(real_planes(name), 6, False)[0].permute(1, 2, 0).contiguous().numpy()


@pytest.mark.parametrize("name", [*CLIPS, ROOT / "tests/data/photo_256.png"], ids=lambda n: n.stem)
@pytest.mark.parametrize(("matrix", "full_range"), [(1, False), (6, False), (1, True)])
def test_real_pictures_become_what_the_writer_makes_of_them(name, matrix, full_range):
    pixels = pixels_of(name)
    picture = unpack_frames_ref(torch.from_numpy(pixels)[None])
    ours = rgb_to_yuv420_ref(picture, matrix, full_range)
    luma, u, v = (
        ours.int() - theirs.int()
        for ours, theirs in zip(ours, swscale_planes(pixels, matrix, full_range, 8), strict=True)
    )
    assert luma.abs().max() <= 1
    assert rms(u) <= 1 and rms(v) <= 1  # its filter is another one


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_libswscale_agrees_on_patches_of_one_colour(matrix, full_range, bits):
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    pixels = colors.repeat(16, 0).repeat(16, 1)
    ours = unrounded_yuv420(
        unpack_frames_ref(torch.from_numpy(pixels)[None]).double(), matrix, full_range, bits
    )
    theirs = swscale_planes(pixels, matrix, full_range, bits)
    # Chroma of full range it rounds down; for 8 bits the writer works around that.
    down = 0.5 if full_range and bits == 10 else 0.0
    for our, their, size, bias in zip(ours, theirs, (16, 8, 8), (0, down, down), strict=True):
        difference = (our - their - bias).reshape(8, size, 8, size)
        inside = difference[:, size // 2, :, size // 2]  # its chroma filter reaches four samples
        assert inside.abs().max() <= 1


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("size", [(24, 32), (23, 31)], ids=str)
def test_ramps_survive_the_way_there_and_back(size, full_range, bits):
    height, width = size
    down, right = torch.linspace(-0.6, 0.6, height)[:, None], torch.linspace(-0.6, 0.6, width)
    picture = torch.stack([down + 0 * right, right + 0 * down, (down - right) / 2])[None].double()
    planes = rgb_to_yuv420_ref(picture, 1, full_range, bits)
    back = yuv420_to_rgb_resize_ref(*planes, *size, 1, full_range, bits, dtype=torch.float64)
    error = (back - picture)[..., 6:-6, 6:-6].abs().amax((0, 2, 3))

    to_rgb = decoding(1, full_range, bits)
    gain, bend = [], []
    for side, shift in ((height, 0.5), (width, 0.0)):
        first, weights = bicubic_taps(side, side, 2, shift, torch.device("cpu"))
        gain.append(weights.abs().sum(1).max())  # how a chroma error of half a level grows
        place = 2 * (first[:, None] + torch.arange(4)) + shift  # luma coordinates of the taps
        bend.append(((place * weights).sum(1) - torch.arange(side)).abs().max())  # a = -0.75
    bend = bend[0] * 1.2 / (height - 1) + bend[1] * 1.2 / (width - 1)  # of chroma as a colour
    chroma = gain[0] * gain[1] / 2
    luma = to_rgb.luma_gain / 2
    green = abs(to_rgb.green_u) + abs(to_rgb.green_v)
    bounds = [luma + weight * chroma for weight in (to_rgb.red_v, green, to_rgb.blue_u)]
    assert (error <= torch.tensor(bounds) + 2 * bend).all()


def test_op_is_registered_correctly(device):
    picture = random_picture((2, 5, 8), device=device)
    torch.library.opcheck(rgb_to_yuv420, (picture.mT.contiguous().mT,))
    torch.library.opcheck(rgb_to_yuv420, (picture.half(), 6, True, 10))


@pytest.mark.parametrize(
    ("picture", "settings", "message"),
    [
        (torch.zeros(1, 4, 2, 2), {}, r"picture must be floating point \[T, 3, H, W\]; got"),
        (torch.zeros(3, 2, 2), {}, r"got torch.float32 \[3, 2, 2\]"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), {}, r"convert it to RGB planes in \[-1, 1\]"),
        (torch.zeros(1, 3, 2, 2), {"matrix": 2}, r"matrix 2 is not supported"),
        (torch.zeros(1, 3, 2, 2), {"bits": 16}, r"16 bits are not supported; need 8 or 10"),
    ],
)
def test_refusals(picture, settings, message):
    with pytest.raises(UsageError, match=message):
        rgb_to_yuv420(picture, **settings)
