import pytest
import torch

from psssr_fast.ops.gated_add import gated_add, gated_add_ref
from psssr_fast.testing import assert_as_accurate

MUTATIONS = [
    ("x + gate * y", "x + y"),
    ("mask=inside)", "mask=col < dim - 1)"),
    ("row // tokens", "0"),
]


def check(shape=(2, 7, 1000), dtype=torch.float32, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    from psssr_fast.kernels.gated_add import gated_add_triton

    x, y = torch.randn(2, *shape, dtype=dtype, device=device)
    gate = torch.randn(shape[0], shape[2], dtype=dtype, device=device)
    exact = gated_add_ref(x.double(), y.double(), gate.double())
    assert_as_accurate(gated_add_triton(x, y, gate), eager=gated_add_ref(x, y, gate), exact=exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 7, 1000), (2, 5, 1536)], ids=str)
def test_gated_add(shape, dtype, device):
    check(shape, dtype, device)


def test_op_is_registered_correctly(device):
    x, y = torch.randn(2, 2, 7, 96, device=device)
    gate = torch.randn(2, 96, device=device)
    torch.library.opcheck(gated_add, (x.mT.contiguous().mT, y, gate))
