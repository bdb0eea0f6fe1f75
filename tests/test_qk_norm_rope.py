import numpy as np
import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.models.dit import RMSNorm, rotary_angles, rotate
from psssr_fast.native import native_available
from psssr_fast.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_ref
from psssr_fast.testing import assert_as_accurate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MUTATIONS = [
    ("/ DIM + eps", "/ DIM"),
    ("even * cos - odd * sin", "even * cos + odd * sin"),
    ("tl.join(even * cos - odd * sin, even * sin + odd * cos)", "tl.join(even, odd)"),
    ("* scale * weights[i].to(tl.float32)", "* scale"),
    ("_finish(k, k_weight,", "_finish(k, q_weight,"),
    ("(start // 2 + tl.arange", "(tl.arange"),
    ("k_inside = row < q_tokens, row < k_tokens", "k_inside = row < q_tokens, row < k_tokens - 1"),
    ("q_ptr + batch * q_batch_stride", "q_ptr"),
    ("row * k_row_stride", "row * DIM"),
    ("sin_ptr + row * HALF", "sin_ptr"),
]


def operands(batch, tokens, dim, heads, dtype, device):
    """Queries and keys as slices of a fused projection, weights, and the tables of a clip."""
    q, k, _ = torch.randn(batch, tokens, 3 * dim, device=device).to(dtype).chunk(3, dim=-1)
    weights = (1 + torch.randn(2, dim, device=device) / 4).to(dtype)
    angles = torch.rand(tokens, dim // heads // 2, device=device) * 100
    return q, k, *weights, angles.cos(), angles.sin()


def compare(*arguments):
    from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton

    wide = [x.double() if isinstance(x, torch.Tensor) else x for x in arguments]
    found = qk_norm_rope_triton(*arguments)
    eager, exact = qk_norm_rope_ref(*arguments), qk_norm_rope_ref(*wide)
    for index in range(2):
        assert found[index].is_contiguous()
        assert_as_accurate(found[index], eager[index], exact[index])


def check(shape=(2, 5, 240), heads=5, dtype=torch.float32, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    q, k, *rest = operands(*shape, heads, dtype, device)
    q[0, 0] = 0  # 0 * rsqrt(0) is not a number
    with np.errstate(all="ignore"):  # a kernel that divides by zero is to finish, and be found out
        compare(q, k, *rest, heads, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "heads"),
    [
        ((1, 1, 2), 1),
        ((2, 3, 36), 3),
        ((1, 7, 1000), 4),
        ((2, 5, 1536), 12),
        ((2, 35, 128), 4),
        ((1, 2, 5120), 40),
        ((1, 3, 512), 1),
    ],
    ids=str,
)
def test_qk_norm_rope(shape, heads, dtype, device):
    check(shape, heads, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [(5, 2), (2, 9), (1, 1)], ids=str)
def test_without_tables_tokens_may_differ(tokens, dtype, device):
    q, k, *weights, _, _ = operands(2, 9, 192, 6, dtype, device)
    compare(q[:, : tokens[0]], k[:, : tokens[1]], *weights, None, None, 6, 1e-6)


def test_queries_alone(device):
    from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton

    q, k, *weights, _, _ = operands(2, 9, 96, 3, torch.float32, device)
    both = qk_norm_rope_triton(q, k, *weights, None, None, 3)
    q_out, none = qk_norm_rope_triton(q, k[:, :0], *weights, None, None, 3)
    assert torch.equal(q_out, both[0])
    assert none.shape == (2, 0, 3, 32)


def test_the_reference_is_the_model(device):
    q, k, q_weight, k_weight, *_ = operands(2, 24, 96, 3, torch.bfloat16, device)
    angles = rotary_angles((2, 3, 4), 32, device)
    cos, sin = angles.cos().float(), angles.sin().float()
    norm = RMSNorm(96, 1e-6).to(q)
    got = qk_norm_rope_ref(q, k, q_weight, k_weight, cos, sin, 3, 1e-6)
    for x, weight, out in ((q, q_weight, got[0]), (k, k_weight, got[1])):
        norm.weight.data = weight
        model = rotate(norm(x).unflatten(-1, (3, -1)), cos[:, None], sin[:, None])
        assert torch.equal(out, model)


@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_tiny_and_huge_queries(factor, device):
    q, k, *rest = operands(1, 5, 128, 2, torch.float32, device)
    compare(q * factor, k / factor, *rest, 2, 1e-6)


def test_channels_apart(device):
    q, k, *rest = operands(2, 7, 48, 2, torch.float32, device)
    compare(q.mT.contiguous().mT, k, *rest, 2, 1e-6)


def test_op_is_registered_correctly(device):
    q, k, *rest = operands(2, 7, 96, 3, torch.float32, device)
    torch.library.opcheck(qk_norm_rope, (q.mT.contiguous().mT, k, *rest, 3, 1e-6))
    torch.library.opcheck(qk_norm_rope, (q, k[:, :4], *rest[:2], None, None, 3))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"q": torch.zeros(7, 16)}, "q is"),
        ({"k": torch.zeros(2, 6, 16)}, "k is"),
        ({"k": torch.zeros(2, 7, 16, dtype=torch.float64)}, "k is"),
        ({"q_weight": torch.zeros(8)}, "q_weight is"),
        ({"k_weight": torch.zeros(16, dtype=torch.float16)}, "k_weight is"),
        ({"cos": torch.zeros(7, 8)}, "cos is"),
        ({"sin": torch.zeros(7, 4, dtype=torch.float64)}, "sin is"),
        ({"sin": None}, "one of cos and sin is missing"),
        ({"heads": 3}, "3 heads of 16 channels"),
        ({"heads": 0}, "0 heads"),
    ],
    ids=str,
)
def test_refuses_operands_that_do_not_fit(change, named):
    from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton

    x, weight, table = torch.zeros(2, 7, 16), torch.zeros(16), torch.zeros(7, 4)
    right = {"q": x, "k": x, "q_weight": weight, "k_weight": weight, "heads": 2}
    with pytest.raises(UsageError, match=f"qk_norm_rope: {named}"):
        qk_norm_rope_triton(**{**right, "cos": table, "sin": table, **change})


@pytest.mark.skipif(not native_available(), reason="the extension is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("dim", "heads"), [(128, 4), (36, 3), (1536, 12), (2, 1)])
def test_compiled_kernel_is_as_accurate_as_eager(dim, heads, dtype):
    qkv = torch.randn(2, 7, 3 * dim).to(dtype)
    q, k = qkv[..., :dim], qkv[..., dim : 2 * dim]  # rows apart
    weights = (1 + 0.1 * torch.randn(2, dim)).to(dtype).unbind(0)
    angles = torch.randn(7, dim // heads // 2)
    tables = angles.cos(), angles.sin()
    for cos, sin in (tables, (None, None)):
        actual = qk_norm_rope(q, k, *weights, cos, sin, heads)
        eager = qk_norm_rope_ref(q, k, *weights, cos, sin, heads)
        wide = [x.double() for x in (q, k, *weights)]
        exact = qk_norm_rope_ref(*wide, cos, sin, heads)
        for one, other, truth in zip(actual, eager, exact, strict=True):
            assert_as_accurate(one, other, truth)


@pytest.mark.skipif(not native_available(), reason="the extension is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_kernel_keeps_nan_and_zero(dtype):
    q = torch.zeros(1, 3, 64, dtype=dtype)
    q[0, 1, 5] = torch.nan
    out, _ = qk_norm_rope(q, q, *torch.ones(2, 64, dtype=dtype), None, None, 2)
    assert out[0, 1].isnan().all()
    assert not out[0, ::2].any()
