import pytest
import torch
import torch.nn.functional as F

from psssr_fast.errors import UsageError
from psssr_fast.ops.feature_project import (
    cached_projection,
    feature_project,
    feature_project_ref,
)
from psssr_fast.testing import assert_as_accurate

MUTATIONS = [
    ("left += left_cached", "left += right_cached"),
    ("right += right_cached.to(tl.float32)", "pass"),
    ("left_inside = rows < tokens", "left_inside = rows < tokens - 1"),
    ("(cols + half < OUT_DIM)", "(cols + half < OUT_DIM - 1)"),
    ("for k in range(0, DIM, K):  # beyond", "for k in range(0, DIM - K, K):  # beyond"),
    ("row = tile // columns * M", "row = tile // columns * N"),
    ("out_desc.store([row, col + half]", "out_desc.store([row, col]"),
    ("tl.dot(h, weight.T, total)", "tl.dot(h, weight.T)"),
    ("total += tl.load(cached_ptr", "tl.load(cached_ptr"),
    ("mask=inner[None, :] < DIM - k, other=0.0", "mask=inner[None, :] < DIM - k - 1, other=0.0"),
    ("(col < OUT_DIM)[None, :]", "(col < OUT_DIM - 1)[None, :]"),
    ("(row < tokens)[:, None]", "(row < tokens - 1)[:, None]"),
    ("[None, :] * weight_stride", "[None, :] * DIM"),
]


def dtypes(device):
    """What the kernels are tried in: ``tl.dot`` on bf16 is wrong in Triton's interpreter."""
    tried = [torch.float32, torch.float16]
    return [*tried, torch.bfloat16] if torch.device(device).type == "cuda" else tried


def operands(batch, tokens, dim, out_dim, dtype, device):
    """Hidden state, the second half of a wider weight, and what is cached."""
    h = torch.randn(batch, tokens, dim, device=device).to(dtype)
    weight = (torch.randn(out_dim, 2 * dim, device=device) / dim**0.5).to(dtype)[:, dim:]
    return h, weight, torch.randn(batch, tokens, out_dim, device=device).to(dtype)


def compare(h, weight, cached):
    from psssr_fast.kernels.feature_project import feature_project_triton

    exact = feature_project_ref(h.double(), weight.double(), cached.double())
    eager = feature_project_ref(h, weight, cached)
    assert_as_accurate(feature_project_triton(h, weight, cached), eager, exact)


def check(shape=(2, 135, 72), out_dim=392, device="cpu"):
    """Both kernels against their reference; tests/test_mutations.py breaks them under it."""
    for dtype in dtypes(device):
        compare(*operands(*shape, out_dim, dtype, device))


@pytest.mark.parametrize(
    ("shape", "out_dim"),
    [
        ((1, 1, 1), 1),  # no descriptor counts in such steps
        ((1, 1, 8), 8),
        ((2, 5, 36), 20),
        ((1, 130, 128), 128),
        ((1, 40, 64), 392),
        ((2, 135, 72), 264),
        ((1, 300, 200), 520),  # several tiles for each program
        ((1, 4, 1536), 1536),
    ],
    ids=str,
)
def test_feature_project(shape, out_dim, device):
    check(shape, out_dim, device)


def test_splitting_the_projection_changes_rounding_alone(device):
    from psssr_fast.kernels.feature_project import feature_project_triton

    for dtype in dtypes(device):
        f, h = torch.randn(2, 2, 40, 64, device=device).to(dtype)
        weight = (torch.randn(64, 128, device=device) / 8).to(dtype)
        bias = torch.randn(64, device=device).to(dtype)
        got = feature_project_triton(h, weight[:, 64:], cached_projection(f, weight, bias))
        stacked = torch.cat([f, h], dim=-1)
        eager = F.linear(stacked, weight, bias)
        exact = F.linear(stacked.double(), weight.double(), bias.double())
        assert_as_accurate(got, eager, exact)


def test_operands_apart_or_unaligned(device):
    for dtype in dtypes(device):
        h, weight, cached = operands(2, 21, 48, 32, dtype, device)
        compare(h.mT.contiguous().mT, weight, cached.mT.contiguous().mT)
        compare(h, weight.T.contiguous().T, cached)
        compare(h[:, 1:, 1:], weight[1:, 1:], cached[:, 1:, 1:])
        compare(h[..., :40], weight[:, 3:43], cached)


def test_no_tokens(device):
    from psssr_fast.kernels.feature_project import feature_project_triton

    h, weight, cached = operands(2, 3, 16, 8, torch.float16, device)
    assert feature_project_triton(h[:, :0], weight, cached[:, :0]).shape == (2, 0, 8)


def test_op_is_registered_correctly(device):
    h, weight, cached = operands(2, 7, 96, 40, torch.float32, device)
    torch.library.opcheck(feature_project, (h.mT.contiguous().mT, weight, cached))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"h": torch.zeros(7, 16)}, "h is"),
        ({"h": torch.zeros(2, 7, 16, dtype=torch.float64)}, "h is"),
        ({"weight": torch.zeros(8, 32)}, "weight is"),
        ({"weight": torch.zeros(8, 16, dtype=torch.float16)}, "weight is"),
        ({"weight": torch.zeros(16)}, "weight is"),
        ({"cached": torch.zeros(2, 7, 16)}, "cached is"),
        ({"cached": torch.zeros(2, 7, 8, dtype=torch.bfloat16)}, "cached is"),
    ],
    ids=str,
)
def test_refuses_operands_that_do_not_fit(change, named):
    from psssr_fast.kernels.feature_project import feature_project_triton

    right = {"h": torch.zeros(2, 7, 16), "weight": torch.zeros(8, 16)}
    with pytest.raises(UsageError, match=f"feature_project: {named}"):
        feature_project_triton(**{**right, "cached": torch.zeros(2, 7, 8), **change})
