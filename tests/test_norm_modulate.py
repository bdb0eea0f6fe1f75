import numpy as np
import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.ops.norm_modulate import norm_modulate, norm_modulate_ref
from psssr_fast.testing import assert_as_accurate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MUTATIONS = [
    ("/ DIM + eps", "/ DIM"),
    ("(tiles[i].to(tl.float32) - mean) * rstd", "tiles[i].to(tl.float32) * rstd"),
    ("centred = tl.where(", "tl.where("),
    ("scale += 1", "pass"),
    (" + shifts[i].to(tl.float32)", ""),
    ("inside = row < tokens", "inside = row < tokens - 1"),
    ("scale_ptr + batch * scale_stride", "scale_ptr"),
    ("batch * batch_stride + row * row_stride", "(batch * tokens + row) * DIM"),
]


def operands(shape, dtype, device):
    """Tokens cut from a wider tensor, and two of the six rows of a modulation."""
    batch, tokens, dim = shape
    x = torch.randn(batch, tokens, 2 * dim, device=device).to(dtype)[..., :dim]
    shift, scale = torch.randn(batch, 6, dim, device=device).to(dtype)[:, 1:5:3].unbind(1)
    return x, shift, scale


def compare(x, shift, scale, eps, affine=False):
    from psssr_fast.kernels.norm_modulate import norm_modulate_triton

    exact = norm_modulate_ref(x.double(), shift.double(), scale.double(), eps, affine)
    eager = norm_modulate_ref(x, shift, scale, eps, affine)
    assert_as_accurate(norm_modulate_triton(x, shift, scale, eps, affine), eager, exact)


def check(shape=(2, 5, 200), dtype=torch.float32, eps=1e-6, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    x, shift, scale = operands(shape, dtype, device)
    x = x + 3  # a mean worth subtracting
    x[0, 0] = 0.25  # without variance: 0 * rsqrt(0) is not a number
    with np.errstate(all="ignore"):  # a kernel that divides by zero is to finish, and be found out
        compare(torch.cat([x, x], dim=-1)[..., : shape[2]], shift, scale, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 3, 8), (2, 7, 1000), (3, 5, 1536), (2, 67, 128), (1, 2, 5120)], ids=str
)
def test_norm_modulate(shape, dtype, device):
    check(shape, dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_affine_layer_norm_is_the_same_op(dtype, device):
    x = torch.randn(2, 9, 192, device=device).to(dtype)
    weight, bias = torch.randn(2, 192, device=device).to(dtype)
    shift, scale = bias.expand(2, -1), weight.expand(2, -1)
    compare(x, shift, scale, 1e-6, affine=True)
    eager = torch.nn.functional.layer_norm(x, (192,), weight, bias, 1e-6)
    torch.testing.assert_close(norm_modulate_ref(x, shift, scale, 1e-6, affine=True), eager)


@pytest.mark.parametrize("scale_of_x", [1e-4, 1e4])
def test_tiny_and_huge_tokens(scale_of_x, device):
    x, shift, scale = operands((2, 5, 384), torch.float32, device)
    compare(x * scale_of_x, shift, scale, 1e-6)


def test_not_a_number_stays_in_its_token(device):
    from psssr_fast.kernels.norm_modulate import norm_modulate_triton

    x, shift, scale = operands((1, 6, 128), torch.float32, device)
    x[0, 2, 7] = torch.nan
    out = norm_modulate_triton(x, shift, scale)
    assert out[0, 2].isnan().all()
    assert out[0, [0, 1, 3, 4, 5]].isfinite().all()


def test_channels_apart_and_no_tokens(device):
    from psssr_fast.kernels.norm_modulate import norm_modulate_triton

    x, shift, scale = operands((2, 7, 48), torch.float32, device)
    compare(x.mT.contiguous().mT, shift.mT.contiguous().mT, scale, 1e-6)
    assert norm_modulate_triton(x[:, :0], shift, scale).shape == (2, 0, 48)


def test_op_is_registered_correctly(device):
    x, shift, scale = operands((2, 7, 96), torch.float32, device)
    torch.library.opcheck(norm_modulate, (x.mT.contiguous().mT, shift, scale, 1e-6))
    torch.library.opcheck(norm_modulate, (x, shift, scale, 1e-6, True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(2, 7)}, "x is"),
        ({"x": torch.zeros(2, 7, 8, dtype=torch.int32)}, "x is"),
        ({"shift": torch.zeros(2, 9)}, "shift is"),
        ({"scale": torch.zeros(1, 8)}, "scale is"),
        ({"scale": torch.zeros(2, 8, dtype=torch.float16)}, "scale is"),
    ],
    ids=str,
)
def test_refuses_operands_that_do_not_fit(change, named):
    from psssr_fast.kernels.norm_modulate import norm_modulate_triton

    right = {"x": torch.zeros(2, 7, 8), "shift": torch.zeros(2, 8), "scale": torch.zeros(2, 8)}
    with pytest.raises(UsageError, match=f"norm_modulate: {named}"):
        norm_modulate_triton(**{**right, **change})
