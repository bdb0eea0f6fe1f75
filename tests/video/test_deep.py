"""Pictures of more than 8 bits to 16-bit RGB and back, against the definition (H.273, 8.3)."""

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from psssr_fast.video.color import PixelConverter
from psssr_fast.video.deep import fill_plane, narrow, planes_of, to_8_bits, to_16_bits, widen
from psssr_fast.video.info import ColorTags

RED_AND_BLUE = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2


def encode(rgb, matrix, full, bits):
    """Exact levels of Y, U and V for RGB in [0, 1]."""
    red, blue = RED_AND_BLUE[matrix]
    y = rgb @ [red, 1 - red - blue, blue]
    u, v = (rgb[..., 2] - y) / (2 - 2 * blue), (rgb[..., 0] - y) / (2 - 2 * red)
    step, peak = 2 ** (bits - 8), 2**bits - 1
    if full:
        return [peak * y, peak * u + 128 * step, peak * v + 128 * step]
    return [16 * step + 219 * step * y, 128 * step + 224 * step * u, 128 * step + 224 * step * v]


def decode(planes, matrix, full, bits):
    """The inverse of :func:`encode`, clipped."""
    red, blue = RED_AND_BLUE[matrix]
    step, peak = 2 ** (bits - 8), 2**bits - 1
    y, u, v = (plane.astype(float) for plane in planes)
    spans = (peak, peak) if full else (219 * step, 224 * step)
    y, u, v = (
        (y - (0 if full else 16 * step)) / spans[0],
        (u - 128 * step) / spans[1],
        (v - 128 * step) / spans[1],
    )
    r, b = y + (2 - 2 * red) * v, y + (2 - 2 * blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], axis=-1), 0, 1)


def picture_of(planes, name):
    picture = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], name)
    for plane, values in zip(picture.planes, planes, strict=True):
        fill_plane(plane, values)
    return picture


@pytest.fixture
def colors():
    generator = np.random.default_rng(1)
    corners = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], float)
    return np.concatenate([corners, generator.random((1000, 3))]).reshape(42, 24, 3)


@pytest.mark.parametrize("bits", [9, 10, 12, 16])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", RED_AND_BLUE)
def test_levels_mean_what_the_standard_says(colors, matrix, full, bits):
    exact = encode(colors, matrix, full, bits)
    planes = [np.rint(p).clip(0, 2**bits - 1).astype(np.uint16) for p in exact]
    converter = PixelConverter(ColorTags(1, 1, matrix, FULL if full else LIMITED), "hevc")
    words = converter.to_words(picture_of(planes, f"yuv444p{bits}le"))
    error = np.abs(words - 65535 * decode(planes, matrix, full, bits))
    # Rounding; and full-range luma, widened with its own high bits, is up to one step off.
    assert error.max() <= (1.6 if full and bits < 16 else 0.6)

    written = planes_of(converter.from_rgb(widened(colors), f"yuv444p{bits}le"))
    ideal = [p.clip(0, 2**bits - 1) for p in encode(widened(colors) / 65535, matrix, full, bits)]
    for plane, levels in zip(written, ideal, strict=True):
        # Twice rounded: to a 16-bit step, then to a step of this depth.
        assert np.abs(plane - levels).max() <= 0.5 + 2.0 ** (bits - 16)


def widened(colors):
    return np.rint(colors * 65535).astype(np.uint16)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_gray_means_what_the_standard_says(bits, full):
    levels = np.linspace(0, 2**bits - 1, 40 * 24).reshape(40, 24).astype(np.uint16)
    converter = PixelConverter(ColorTags(1, 1, 1, FULL if full else LIMITED), "ffv1")
    words = converter.to_words(picture_of([levels], f"gray{bits}le"))
    step = 2.0 ** (bits - 8)
    exact = levels / (2**bits - 1) if full else (levels - 16 * step) / (219 * step)
    error = np.abs(words - 65535 * np.clip(exact, 0, 1)[..., None])
    assert error.max() <= 0.51


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("order", ["le", "be"])
def test_rgb_planes_are_read_and_written_exactly(bits, order):
    generator = np.random.default_rng(2)
    stored = generator.integers(0, 2**bits, (3, 40, 24), np.uint16)
    picture = picture_of(list(stored), f"gbrp{bits}le")
    converter = PixelConverter(ColorTags(1, 1, 0, FULL), "ffv1")
    expected = np.rint(stored / (2**bits - 1) * 65535)
    if order == "be":
        picture = VideoReformatter().reformat(picture, format=f"gbrp{bits}be")
    words = converter.to_words(picture)
    assert np.array_equal(np.moveaxis(words, -1, 0), expected[[2, 0, 1]])
    back = planes_of(converter.from_rgb(words, f"gbrp{bits}le"))
    assert np.array_equal(np.stack(back), stored)


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_every_code_is_widened_and_narrowed_exactly(bits):
    every = np.arange(2**bits, dtype=np.uint16)
    wide = widen(every, bits)
    assert np.array_equal(wide, np.rint(every / (2**bits - 1) * 65535))
    assert np.array_equal(narrow(wide, bits), every)


def test_eight_bits_and_sixteen_are_257_apart():
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_16_bits(every), every.astype(int) * 257)
    assert np.array_equal(to_8_bits(to_16_bits(every)), every)
    words = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bits(words), np.rint(words / 257))


@pytest.mark.parametrize("name", ["p010le", "y210le", "yuv440p10le", "yuv420p10be", "yuva444p10le"])
def test_other_layouts_of_ten_bits_hold_the_same_gray(name):
    levels = np.linspace(64, 940, 32 * 16).reshape(16, 32).astype(np.uint16)
    flat = np.full((16, 32), 512, np.uint16)
    plain = picture_of([levels, flat, flat], "yuv444p10le")
    converter = PixelConverter(ColorTags(1, 1, 1, LIMITED), "hevc")
    other = VideoReformatter().reformat(plain, format=name)
    assert np.array_equal(converter.to_words(other), converter.to_words(plain))
