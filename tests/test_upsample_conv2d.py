import pytest
import torch
import torch.nn.functional as F
from test_causal_conv3d import as_on

from psssr_fast.errors import UsageError
from psssr_fast.kernels._conv_tiles import Problem, candidate_tiles
from psssr_fast.models.vae import CausalCache, Upsample
from psssr_fast.ops.upsample_conv2d import (
    LAYOUT,
    pack_upsample_weight,
    upsample_conv2d,
    upsample_conv2d_ref,
)
from psssr_fast.testing import assert_as_accurate

MUTATIONS = [
    ("permute(0, 1, 3, 4, 2)", "permute(0, 1, 4, 3, 2)"),
    ("phases.permute", "phases[[0, 2, 1, 3]].permute"),
    ("        bias,\n", "        0 * bias,\n"),
]
# Architecture, and the shape: batch, channels in and out, frames, height, width
CASES = [
    (90, 2, 24, 96, 2, 5, 9),  # lines of pixels
    (90, 1, 32, 192, 1, 5, 19),  # channels first
    (90, 1, 8, 200, 1, 3, 3),  # channels first, and the last block of channels is not full
    (90, 1, 8, 24, 1, 1, 70),
    (100, 1, 16, 40, 1, 5, 9),
    (80, 1, 16, 96, 2, 9, 17),  # masked loads
    (80, 2, 3, 20, 2, 1, 1),  # taps and channels as one
]


def operands(shape, dtype, device):
    batch, cin, cout, frames, height, width = shape
    x = torch.randn(batch, cin, frames, height, width, device=device).to(dtype)
    weight = (torch.randn(cout, cin, 3, 3, device=device) / (9 * cin) ** 0.5).to(dtype)
    return x, weight, torch.randn(cout, device=device).to(dtype)


def exactly(x, weight, bias):
    return upsample_conv2d_ref(x.double(), weight.double(), bias.double())


def check(cases=CASES[:2], dtype=torch.float16, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the launcher under it."""
    from psssr_fast.kernels.upsample_conv2d import upsample_conv2d_triton

    for arch, *shape in cases:
        x, weight, bias = operands(shape, dtype, device)
        with as_on(arch):
            actual = upsample_conv2d_triton(x, pack_upsample_weight(weight), bias)
        eager = upsample_conv2d_ref(x, weight, bias)
        assert_as_accurate(actual, eager, exact=exactly(x, weight, bias))
        assert actual.is_contiguous(memory_format=LAYOUT)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_upsample_conv2d(case, device):
    check([case], torch.float16, device)
    if device.type == "cuda":  # the interpreter multiplies bf16 wrongly
        check([case], torch.bfloat16, device)


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("cout", [24, 40, 96, 192, 200, 256])
def test_no_phase_writes_into_its_neighbour(arch, cout):
    problem = Problem(16, cout, (1, 2, 2), 8, 8, 2, torch.float16, arch)
    for tile in candidate_tiles(problem):
        assert not tile.tma_out or cout % sum(tile.channels) == 0


def test_fp32(device):
    check([(80, 1, 20, 20, 1, 3, 5)], torch.float32, device)


def by_phases(x, phases, bias):
    """The four convolutions with exact products, rounded once: what the kernel computes."""
    frames = x.transpose(1, 2).flatten(0, 1).double()
    y = frames.new_empty(len(frames), len(bias), 2 * x.shape[3], 2 * x.shape[4])
    for phase, weight in enumerate(phases.double()):
        py, px = divmod(phase, 2)
        padded = F.pad(frames, (1 - px, px, 1 - py, py))
        y[:, :, py::2, px::2] = F.conv2d(padded, weight, bias.double())
    return torch.unflatten(y.to(x.dtype), 0, (len(x), -1)).transpose(1, 2)


@pytest.mark.parametrize("shape", [(1, 384, 192, 1, 6, 10), (1, 192, 96, 1, 6, 10)], ids=str)
def test_sums_rounded_to_bf16_are_accurate_enough(shape):
    x, weight, bias = operands(shape, torch.bfloat16, "cpu")
    actual = by_phases(x, pack_upsample_weight(weight), bias)
    eager = upsample_conv2d_ref(x, weight, bias)
    assert_as_accurate(actual, eager, exact=exactly(x, weight, bias))


def test_phases_of_fp32_weights_are_as_good_as_rounded_weights():
    shape = 1, 384, 192, 1, 6, 10
    x, weight, bias = operands(shape, torch.float32, "cpu")
    x, bias = x.bfloat16(), bias.bfloat16()
    exact = exactly(x, weight, bias)
    actual = by_phases(x, pack_upsample_weight(weight, torch.bfloat16), bias)
    eager = upsample_conv2d_ref(x, weight.bfloat16(), bias)
    assert (actual - exact).square().mean() <= 1.05 * (eager - exact).square().mean()


def test_phases_are_exact_algebra():
    x, weight, bias = operands((1, 5, 4, 2, 3, 4), torch.float64, "cpu")
    actual = by_phases(x, pack_upsample_weight(weight), bias)
    torch.testing.assert_close(actual, upsample_conv2d_ref(x, weight, bias), rtol=0, atol=1e-14)


def test_it_is_the_layer_of_the_vae(device):
    layer = Upsample(16, temporal=False).to(device)
    convolution = layer.resample[1]
    x = torch.randn(1, 16, 2, 3, 4, device=device)
    with torch.no_grad():
        eager = layer(x, CausalCache())
        exact = layer.double()(x.double(), CausalCache())
        weight, bias = convolution.weight.float(), convolution.bias.float()
        assert_as_accurate(upsample_conv2d(x, weight, bias), eager, exact)


def test_op_is_registered_correctly(device):
    x = torch.randn(2, 3, 8, 4, 5, device=device).transpose(1, 2)  # not in any usual order
    weight, bias = torch.randn(6, 8, 3, 3, device=device), torch.randn(6, device=device)
    torch.library.opcheck(upsample_conv2d, (x, weight, bias))
    torch.library.opcheck(upsample_conv2d, (x, weight, bias, pack_upsample_weight(weight)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 8, 4, 4)}, "x must be"),
        ({"weight": torch.zeros(4, 8, 3, 5)}, "weight must be"),
        ({"weight": torch.zeros(4, 8, 3, 3, dtype=torch.float64)}, "weight must be"),
        ({"bias": torch.zeros(5)}, "bias must be"),
        ({"phases": torch.zeros(4, 4, 8, 3, 3)}, "phases must be"),
    ],
)
def test_refusals(change, message):
    arguments = {
        "x": torch.zeros(1, 8, 3, 4, 4),
        "weight": torch.zeros(4, 8, 3, 3),
        "bias": torch.zeros(4),
    }
    with pytest.raises(UsageError, match=f"upsample_conv2d: {message}"):
        upsample_conv2d(**arguments | change)
