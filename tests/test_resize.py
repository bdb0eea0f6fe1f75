"""Bringing frames to output size."""

import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.resize import output_size, resize_frames


@pytest.mark.parametrize(
    ("scale", "height", "expected"),
    [
        (None, None, (720, 1280)),
        (2.0, None, (360, 640)),
        (1.0, None, (180, 320)),
        (2.5, None, (450, 800)),
        (0.5, None, (90, 160)),
        (None, 2160, (2160, 3840)),
        (None, 271, (271, 482)),
    ],
)
def test_output_size(scale, height, expected):
    assert output_size(180, 320, scale, height) == expected


@pytest.mark.parametrize(
    ("scale", "height", "message"),
    [
        (0.0, None, "scale must be a positive number; got 0"),
        (float("nan"), None, "scale must be a positive number; got nan"),
        (100.0, None, "output 32000x18000 from input 320x180"),
        (0.001, None, "output 0x0"),
        (None, 0, "height must be a whole number of pixels, at least 1; got 0"),
        (None, 10.5, "height must be a whole number .* got 10.5"),
        (None, 10**6, "output 1777778x1000000"),
        (2.0, 720, "give either scale or height, not both"),
    ],
)
def test_impossible_sizes_are_refused(scale, height, message):
    with pytest.raises(UsageError, match=message):
        output_size(180, 320, scale, height)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("size", [(40, 60), (25, 31), (5, 7)], ids=["up", "odd", "down"])
def test_a_constant_stays_constant_and_edges_stay_in_range(mode, size):
    flat = torch.full((1, 3, 10, 15), 0.25)
    torch.testing.assert_close(resize_frames(flat, *size, mode), torch.full((1, 3, *size), 0.25))
    edge = torch.ones(1, 3, 10, 15)
    edge[..., :7] = -1
    resized = resize_frames(edge, *size, mode)
    assert resized.shape == (1, 3, *size)
    assert resized.abs().max() <= 1  # bicubic would overshoot


def test_same_size_is_the_same_frame():
    x = torch.rand(1, 3, 4, 5)
    assert resize_frames(x, 4, 5) is x
