"""Attention within 3-D tiles and their neighbours, against plain attention tile by tile."""

from math import prod

import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.models.attention_windows import Layout
from psssr_fast.ops.window_attention import window_attention, window_attention_ref
from psssr_fast.testing import assert_as_accurate

NONE = (0, 0, 0)
DTYPES = [torch.float16, torch.float32]
if torch.cuda.is_available():
    DTYPES += [torch.bfloat16]  # tl.dot on bf16 is wrong in Triton's interpreter
MUTATIONS = [  # none reads or writes beyond a tensor, which would take the interpreter down
    ('scores = tl.where(inside[None], scores, float("-inf"))', "scores = scores"),
    ("total = total * fade +", "total = total +"),
    ("acc * fade[:, None]", "acc"),
    ("(tile + reach + 1) * window - shift", "(tile + reach) * window - shift + 1"),
    ("row_ends & (h + H >= end[1])", "row_ends"),
    ("tl.where(row_ends, h + H, h)", "h"),
    ("t_next, h_next, w_next, column]", "t, h, w, column]"),
]
# arch, dtype, grid, window, shift, reach, head_dim: several blocks along every axis, tiles that
# the grid cuts short, and a head narrower than its power of two.
SMALL = [
    (80, torch.float32, (2, 3, 17), (2, 3, 17), NONE, NONE, 16),
    (80, torch.float32, (2, 3, 9), (1, 2, 9), (0, 1, 4), (1, 1, 1), 48),
    (90, torch.float16, (3, 9, 7), (3, 8, 8), (0, 4, 0), NONE, 32),
    (90, torch.float16, (1, 2, 70), (1, 2, 70), NONE, NONE, 128),
]


def compare(dtype, grid, window, shift, reach, head_dim, device, batch=1, heads=2, keys=None):
    """The kernel against its reference, in the configuration that ``architecture`` asks for."""
    from psssr_fast.kernels.window_attention import window_attention_triton

    q = torch.randn(batch, prod(grid), heads, head_dim, dtype=dtype, device=device)
    k, v = torch.randn(2, batch, keys or prod(grid), heads, head_dim, dtype=dtype, device=device)
    geometry = grid, window, shift, reach
    assert_as_accurate(
        window_attention_triton(q, k, v, *geometry),
        eager=window_attention_ref(q, k, v, *geometry),
        exact=window_attention_ref(q.double(), k.double(), v.double(), *geometry),
    )


def check(cases=SMALL, device="cpu"):
    """Every case in its architecture's configuration, as far as it runs on this device; what
    tests/test_mutations.py breaks the kernel under."""
    import psssr_fast.kernels.window_attention as kernel

    device = torch.device(device)
    old = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 9
    with pytest.MonkeyPatch.context() as patch:
        for arch, *case in cases:
            if arch < 90 or not old:  # descriptors need Hopper
                patch.setattr(kernel, "architecture", lambda x, arch=arch: arch)
                compare(*case, device)


@pytest.mark.parametrize(
    ("grid", "window", "shift", "reach", "head_dim"),
    [
        ((5, 7, 9), (4, 8, 8), NONE, NONE, 32),
        ((5, 7, 9), (4, 8, 8), (2, 0, 4), NONE, 128),
        ((1, 1, 300), (1, 1, 300), NONE, NONE, 64),
        ((3, 5, 4), (2, 2, 2), (1, 1, 1), (1, 1, 0), 16),
        ((1, 1, 1), (4, 8, 8), NONE, NONE, 256),
        ((2, 3, 4), (2, 3, 2), NONE, (9, 9, 9), 112),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_window_attention(grid, window, shift, reach, head_dim, dtype, device):
    small = dtype == torch.float32 or max(window) == 2  # tiles of 8 tokens make many programs
    batch, heads = (1, 1) if small and device.type == "cpu" else (2, 3)
    compare(dtype, grid, window, shift, reach, head_dim, device, batch, heads)


@pytest.mark.parametrize("keys", [1, 77, 200])
def test_full_attention_to_other_keys(keys, device):
    compare(torch.float16, (2, 2, 5), (2, 2, 5), NONE, NONE, 64, device, batch=2, keys=keys)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_configuration_of_a_launch(arch, device):
    whole = (1, 2, 70), (1, 2, 70), NONE, NONE
    check([(arch, torch.float16, *whole, head_dim) for head_dim in (16, 64, 96, 128, 256)], device)


def test_operands_may_be_slices_of_one_tensor(device):
    from psssr_fast.kernels.window_attention import window_attention_triton

    geometry = (2, 3, 5), (2, 3, 3), (0, 0, 1), NONE
    joint = torch.randn(2, 30, 3, 2, 32, dtype=torch.float16, device=device)
    q, k, v = joint.unbind(2)
    heads_first = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    expected = window_attention_triton(*(x.contiguous() for x in (q, k, v)), *geometry)
    assert torch.equal(window_attention_triton(q, k, v, *geometry), expected)
    assert torch.equal(window_attention_triton(*heads_first, *geometry), expected)


def test_one_dominant_key_and_equal_keys(device):
    """Scores of thousands neither overflow nor lose the others' sum; equal scores average."""
    from psssr_fast.kernels.window_attention import window_attention_triton

    q = torch.full((1, 70, 1, 32), 60.0, dtype=torch.float16, device=device)
    k, v = torch.zeros_like(q), torch.randn_like(q)
    geometry = (1, 1, 70), (1, 1, 70), NONE, NONE
    mean = v.double().mean(1, keepdim=True).expand_as(v)
    out = window_attention_triton(q, k, v, *geometry)
    assert_as_accurate(out, eager=window_attention_ref(q, k, v, *geometry), exact=mean)
    k[:, 65] = 60.0  # in the second block of keys: all that came before must fade
    out = window_attention_triton(q, k, v, *geometry)
    assert torch.equal(out, v[:, 65:66].expand_as(v))


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("grid", [(5, 7, 9), (8, 3, 4), (1, 1, 1), (4, 16, 8)], ids=str)
def test_the_reference_is_attention_in_the_windows_of_a_layout(grid, shifted):
    q, k, v = torch.randn(3, 2, prod(grid), 2, 8, dtype=torch.float64)
    layout = Layout.over(grid, (4, 8, 8), shifted, device=q.device)
    split = [layout.split(x).transpose(1, 2) for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=layout.mask_for(2))
    expected = layout.join(out.transpose(1, 2), batch=2)
    actual = window_attention_ref(q, k, v, grid, layout.window, layout.shift, NONE)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("reach", [NONE, (1, 0, 2), (9, 9, 9)], ids=str)
def test_the_reference_is_attention_under_the_mask_of_its_definition(reach):
    grid, window, shift = (3, 5, 7), (2, 2, 3), (1, 0, 2)
    q, k, v = torch.randn(3, 1, prod(grid), 2, 8, dtype=torch.float64)
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    tiles = (places + torch.tensor(shift)).div(torch.tensor(window), rounding_mode="floor")
    seen = ((tiles[:, None] - tiles[None]).abs() <= torch.tensor(reach)).all(-1)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen)
    actual = window_attention_ref(q, k, v, grid, window, shift, reach)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


def test_op_is_registered_correctly(device):
    q, k, v = torch.randn(3, 2, 2, 30, 32, device=device).transpose(2, 3)
    geometry = [2, 3, 5], [2, 2, 3], [1, 0, 0], [0, 1, 0]
    torch.library.opcheck(window_attention, (q, k, v, *geometry))
    torch.library.opcheck(
        window_attention, (q, k[:, :7], v[:, :7], [2, 3, 5], [2, 3, 5], NONE, NONE)
    )


def test_blocks_cover_a_box_with_as_few_as_can_be():
    from psssr_fast.kernels.window_attention import block_shape

    assert block_shape((4, 8, 8), 128) == (2, 8, 8)
    assert block_shape((1, 1, 28_800), 64) == (1, 1, 64)
    assert block_shape((12, 24, 24), 64) == (1, 8, 8)
    assert block_shape((2, 4, 4), 32) == (2, 4, 4)


OPERANDS = {
    "tokens": ({"q": (1, 11, 2, 32)}, r"grid \[3, 2, 2\] is not 11 tokens"),
    "shapes": ({"v": (1, 12, 2, 16)}, r"v \[1, 12, 2, 16\]; only the tokens"),
    "rank": ({"q": (12, 2, 32)}, r"got torch.float16 \[12, 2, 32\].*\[batch, tokens, heads"),
    "keys": ({"k": (1, 5, 2, 32), "v": (1, 5, 2, 32)}, "5 keys for 12 queries; pass as many"),
    "window": ({"window": (2, 0, 2)}, r"got window \[2, 0, 2\]"),
    "shift": ({"shift": (0, 2, 0)}, r"got shift \[0, 2, 0\]; pass 0 <= shift < window \[2, 2, 2\]"),
    "reach": ({"reach": (0, 0)}, "need 3 numbers each"),
}


@pytest.mark.parametrize("change", OPERANDS)
def test_operands_that_do_not_fit_are_refused(change, device):
    changes, message = OPERANDS[change]
    shape = (1, 12, 2, 32)
    given = {"q": shape, "k": shape, "v": shape, "window": (2, 2, 2), "shift": NONE, "reach": NONE}
    given |= changes
    q, k, v = (torch.zeros(given[x], dtype=torch.float16, device=device) for x in "qkv")
    with pytest.raises(UsageError, match=message):
        window_attention(q, k, v, (3, 2, 2), given["window"], given["shift"], given["reach"])


def test_dtypes_must_agree(device):
    q = torch.zeros(1, 4, 1, 32, device=device)
    with pytest.raises(UsageError, match="pass q, k and v of one dtype"):
        window_attention(q, q.half(), q, (1, 1, 4), (1, 1, 4), NONE, NONE)


@pytest.mark.parametrize("head_dim", [8, 24, 272])
def test_the_kernel_refuses_heads_that_it_cannot_hold(head_dim, device):
    from psssr_fast.kernels.window_attention import window_attention_triton

    q = torch.zeros(1, 4, 1, head_dim, dtype=torch.float16, device=device)
    with pytest.raises(UsageError, match=f"head_dim {head_dim}; .* multiple of 16 up to 256"):
        window_attention_triton(q, q, q, (1, 1, 4), (1, 1, 4), NONE, NONE)
