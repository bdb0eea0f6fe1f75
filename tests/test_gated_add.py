import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.ops.gated_add import gated_add, gated_add_ref
from psssr_fast.testing import assert_as_accurate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MUTATIONS = [
    ("x.to(tl.float32) + gate * ", "x.to(tl.float32) + "),
    ("x.to(tl.float32) + gate", "gate"),
    ("within = col < DIM", "within = col < DIM - 1"),
    ("(row < tokens) &", "(row < tokens - 1) &"),
    ("batch * gate_stride", "0"),
    ("row * y_row_stride", "row * x_row_stride"),
    ("y_ptr + batch * y_batch_stride", "y_ptr"),
    ("% columns * BLOCK", "% columns"),
]


def compare(x, y, gate):
    from psssr_fast.kernels.gated_add import gated_add_triton

    exact = gated_add_ref(x.double(), y.double(), gate.double())
    assert_as_accurate(gated_add_triton(x, y, gate), eager=gated_add_ref(x, y, gate), exact=exact)


def check(shape=(2, 7, 1000), dtype=torch.float32, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    batch, tokens, dim = shape
    x = torch.randn(shape, device=device).to(dtype)
    y = torch.randn(batch, tokens + 1, 2 * dim, device=device).to(dtype)[:, 1:, dim:]
    gate = torch.randn(batch, 6, dim, device=device).to(dtype)[:, 2]
    compare(x, y, gate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 8), (2, 7, 1000), (3, 19, 1536), (2, 67, 128)], ids=str
)
def test_gated_add(shape, dtype, device):
    check(shape, dtype, device)


def test_channels_apart_and_no_tokens(device):
    from psssr_fast.kernels.gated_add import gated_add_triton

    x, y = torch.randn(2, 2, 7, 48, device=device)
    gate = torch.randn(2, 48, device=device)
    compare(x.mT.contiguous().mT, y.mT.contiguous().mT, gate.mT.contiguous().mT)
    assert gated_add_triton(x[:, :0], y[:, :0], gate).shape == (2, 0, 48)


def test_a_closed_gate_and_huge_values(device):
    x, y = torch.randn(2, 2, 5, 96, device=device)
    gate = torch.randn(2, 96, device=device)
    compare(x, y * 1e30, gate * 0)
    compare(x * 1e30, y * 1e-30, gate)


def test_op_is_registered_correctly(device):
    x, y = torch.randn(2, 2, 7, 96, device=device)
    gate = torch.randn(2, 96, device=device)
    torch.library.opcheck(gated_add, (x.mT.contiguous().mT, y, gate))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(7, 8)}, "x is"),
        ({"x": torch.zeros(2, 7, 8, dtype=torch.float64)}, "x is"),
        ({"y": torch.zeros(2, 1, 8)}, "y is"),
        ({"y": torch.zeros(2, 7, 8, dtype=torch.float16)}, "y is"),
        ({"gate": torch.zeros(1, 8)}, "gate is"),
        ({"gate": torch.zeros(2, 1, 8)}, "gate is"),
    ],
    ids=str,
)
def test_refuses_operands_that_do_not_fit(change, named):
    from psssr_fast.kernels.gated_add import gated_add_triton

    x = torch.zeros(2, 7, 8)
    with pytest.raises(UsageError, match=f"gated_add: {named}"):
        gated_add_triton(**{"x": x, "y": x, "gate": torch.zeros(2, 8), **change})
