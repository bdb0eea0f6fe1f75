"""Bands over the height: the same clip, and no library is given more elements than it can count."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from psssr_fast.models.sizes import WAN_1_3B, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.ops import _bands
from psssr_fast.ops._bands import in_bands
from psssr_fast.ops.causal_conv3d import causal_conv3d, causal_conv3d_ref
from psssr_fast.ops.upsample_conv2d import upsample_conv2d, upsample_conv2d_ref
from psssr_fast.runtime import memory
from psssr_fast.runtime.memory import measure_peak, rehearse
from psssr_fast.runtime.vae_engine import FusedVae


@dataclass
class Asked:
    """Of a library: how often, and the most elements that it read or wrote."""

    calls: int = 0
    elements: int = 0


@contextmanager
def noted(names=("conv2d", "conv3d", "interpolate")):
    """Note what is asked of the library's functions inside."""
    asked, whole = Asked(), {name: getattr(F, name) for name in names}

    def noting(function):
        def call(x, *arguments, **named):
            result = function(x, *arguments, **named)
            asked.calls += 1
            asked.elements = max(asked.elements, x.numel(), result.numel())
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, function in whole.items():
            patch.setattr(F, name, noting(function))
        yield asked


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(3)
    return WanVae(VaeSize(dim=8, res_blocks=1)).eval().requires_grad_(False)


@pytest.fixture
def limited(monkeypatch):
    """Sets the limit, and forgets what was rehearsed with another."""

    def limit(elements):
        monkeypatch.setattr(_bands, "LIMIT", elements)
        monkeypatch.setattr(memory, "_known_scratch", {})

    return limit


def given(direction, frames, dtype=torch.float64):
    """A clip of 7 x 5 latent pixels."""
    generator = torch.Generator().manual_seed(frames)
    if direction == "encode":
        x = torch.rand(1, 3, frames, 56, 40, generator=generator) * 2 - 1
    else:
        x = torch.randn(1, 16, (frames - 1) // 4 + 1, 7, 5, generator=generator)
    return x.to(dtype)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("frames", [1, 5, 9])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_the_engine_gives_the_same_in_bands(vae, direction, frames, chunked, limited):
    """Rounding apart: in fp32 as near to fp64 as without bands, and in fp64 nearly the same."""
    plain = copy.deepcopy(vae).double()
    x = given(direction, frames)
    exact = getattr(plain, direction)(x, chunked=chunked)
    single, double = (getattr(FusedVae(one), direction) for one in (vae, plain))
    with noted() as whole:
        eager = single(x.float(), chunked=chunked)
    limit = whole.elements // 6
    limited(limit)
    with noted() as banded:
        actual = single(x.float(), chunked=chunked)
    assert banded.elements <= limit
    assert banded.calls >= whole.calls + 20
    error, bound = ((y.double() - exact).square().mean().sqrt() for y in (actual, eager))
    assert error <= 1.05 * bound
    assert (actual.shape, actual.stride()) == (eager.shape, eager.stride())
    torch.testing.assert_close(double(x, chunked=chunked), exact, rtol=1e-11, atol=1e-11)


def pair(kernel, dtype=torch.float64):
    """Ring, weight, bias and residual of a convolution of 3 frames with 1 before them."""
    weight = torch.randn(6, 5, *kernel, dtype=dtype)
    ring = torch.randn(2, 5, 5, 23, 7, dtype=dtype)
    return ring, weight, torch.randn(6, dtype=dtype), torch.randn(2, 6, 3, 23, 7, dtype=dtype)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1), (1, 5, 3)], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 9, 22, 23])
def test_a_convolution_in_bands_is_the_convolution(kernel, rows, limited):
    """Of the last frames of a ring and the first, with bands that do not divide the height."""
    operands, walk = pair(kernel), (4, 3, 1)
    exact = causal_conv3d_ref(*operands, *walk)
    halo = kernel[1] // 2
    limited((rows + 2 * halo + 1) * 2 * 7 * max(5 * (3 + kernel[0] - 1), 6 * 3))
    with noted() as asked:
        actual = causal_conv3d(*operands, *walk)
    assert asked.calls == (1 if rows + 2 * halo >= 23 else -(-23 // rows))
    torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_doubling_in_bands_is_doubling(rows, limited):
    x, weight = torch.randn(2, 3, 2, 11, 5).double(), torch.randn(4, 3, 3, 3).double()
    bias = torch.randn(4).double()
    exact = upsample_conv2d_ref(x, weight, bias)
    limited((rows + 3) * 4 * 2 * 4 * 2 * 5)
    with noted(["interpolate"]) as asked:
        actual = upsample_conv2d(x, weight, bias)
    assert asked.calls == -(-11 // rows)
    torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)


def test_rows_that_are_too_wide_are_taken_one_by_one(limited):
    limited(10)
    asked = []

    def run(rows):
        asked.append((rows.start, rows.stop))
        return torch.arange(rows.start // 2, rows.stop // 2).view(1, 1, 1, -1, 1)

    result = in_bands(run, height=6, elements=100, halo=2, step=2)
    assert asked == [(0, 4), (0, 6), (2, 6)]
    assert result.flatten().tolist() == [0, 1, 2]


def test_below_the_limit_nothing_is_cut():
    """As large as a group of frames at 1440p, with the history of a convolution."""
    asked = []
    in_bands(lambda rows: asked.append(rows) or torch.empty(0), 1440, 96 * 6 * 2560, halo=1)
    assert asked == [slice(0, 1440)]


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_the_rehearsal_knows_of_bands(vae, direction, limited):
    engine = getattr(FusedVae(vae), direction)
    x = given(direction, 9, torch.float32)
    with noted() as whole:
        engine(x, chunked=True)
    limited(whole.elements // 6)
    measured = measure_peak(lambda: engine(x, chunked=True), x.device)
    empty = FusedVae(copy.deepcopy(vae).to("meta"))
    clip = x.to("meta")
    peak = rehearse(lambda: getattr(empty, direction)(clip, chunked=True), x.device)
    assert abs(peak.total - measured) <= 0.1 * measured


def test_a_whole_picture_of_4k_is_within_the_limit(monkeypatch):
    """Of the full-size encoder, what libraries are asked for where our kernels do the rest."""
    with torch.device("meta"):
        encode = FusedVae(WanVae(WAN_1_3B.codec)).encode
        picture = torch.empty(1, 3, 5, 2160, 3840)
    with noted() as banded:
        encode(picture, chunked=True)
    monkeypatch.setattr(_bands, "LIMIT", 2**40)
    with noted() as whole:
        encode(picture, chunked=True)
    assert banded.elements < 2**31 < whole.elements
    assert (whole.calls, banded.calls) == (8, 9)
