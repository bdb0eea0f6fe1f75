import pytest
import torch
from torch import nn

from psssr_fast.errors import UsageError
from psssr_fast.models.vae import RMSNorm
from psssr_fast.ops.rms_norm_silu import (
    LAYOUT,
    rms_norm_silu,
    rms_norm_silu_into,
    rms_norm_silu_ref,
)
from psssr_fast.testing import assert_as_accurate

MUTATIONS = [
    ("pixel < pixels - start", "pixel < pixels - start - 1"),
    ("1e-24", "1e-30"),
    ("* inverse * gamma", "* inverse"),
    ("root * tl.rsqrt", "tl.rsqrt"),
    ("squares += piece * piece", "squares = piece * piece"),
    ("y = y * sigmoid_root * sigmoid_root", "y = y * sigmoid_root"),
    ("(batch * slots + slot)", "slot"),
    ("slot < slots, slot, slot - slots", "slot < slots, slot, 0"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def clip(shape, dtype, device, layout=LAYOUT):
    """Random activations, a pixel of zeros and one below the eps among them, and gains."""
    x = torch.randn(shape, device=device)
    x[..., 0, 0] = 0
    x[..., -1, -1] *= 1e-20 if dtype != torch.float16 else 6e-8
    gamma = torch.randn(shape[1], device=device).to(dtype)
    gamma[0] = 0
    return x.to(dtype).contiguous(memory_format=layout), gamma.view(-1, 1, 1, 1)


def check(shape=(2, 96, 3, 5, 7), dtype=torch.float32, device="cpu", silu=True, slots=5, first=9):
    """The kernel against its reference, into a ring; tests/test_mutations.py breaks the kernel."""
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_into_triton

    x, gamma = clip(shape, dtype, device)
    ring = x.new_full((*shape[:2], slots, *shape[3:]), 7).contiguous(memory_format=LAYOUT)
    rms_norm_silu_into_triton(x, gamma, ring, first, silu)
    order = [(first + t) % slots for t in range(shape[2])]
    exact = rms_norm_silu_ref(x.double(), gamma.double(), silu)
    assert_as_accurate(ring[:, :, order], rms_norm_silu_ref(x, gamma, silu), exact)
    others = [slot for slot in range(slots) if slot not in order]
    assert (ring[:, :, others] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 96, 1, 9, 8),
        (2, 192, 2, 3, 13),
        (1, 384, 2, 1, 17),
        (2, 8, 1, 5, 6),
        (1, 16, 2, 33, 1),
        (1, 32, 1, 3, 3),
        (1, 100, 3, 4, 5),
        (1, 1, 1, 2, 2),
    ],
    ids=str,
)
def test_rms_norm_silu(shape, dtype, device):
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton

    x, gamma = clip(shape, dtype, device)
    for silu in (True, False):
        out = rms_norm_silu_triton(x, gamma, silu)
        exact = rms_norm_silu_ref(x.double(), gamma.double(), silu)
        assert_as_accurate(out, rms_norm_silu_ref(x, gamma, silu), exact)
        assert out.is_contiguous(memory_format=LAYOUT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("slots", "first"), [(3, 0), (5, 4), (5, 12), (8, 7)])
def test_ring(slots, first, dtype, device):
    check(slots=slots, first=first, dtype=dtype, device=device)


def test_other_layouts_are_converted(device):
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton

    x, gamma = clip((2, 24, 4, 3, 5), torch.float32, device, torch.contiguous_format)
    for view in (x, x[:, :, 1:3], x.transpose(3, 4), x[:, :16], x.expand(2, -1, -1, -1, -1)):
        expected = rms_norm_silu_triton(
            view.contiguous(memory_format=LAYOUT), gamma[: view.shape[1]], True
        )
        assert torch.equal(rms_norm_silu_triton(view, gamma[: view.shape[1]], True), expected)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")  # NumPy; a GPU does not tell
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 6e4), (torch.bfloat16, 1e17), (torch.float32, 1e17)]
)
def test_huge_values(dtype, size, device):
    """A pixel's squares pass the range of fp16, and the sigmoid's exponential that of fp32."""
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton

    x = torch.randn(1, 96, 1, 4, 5, device=device).sign().mul(size).to(dtype)
    gamma = torch.full((96,), 200.0, dtype=dtype, device=device)
    exact = rms_norm_silu_ref(x.double(), gamma.double(), True)
    assert_as_accurate(
        rms_norm_silu_triton(x, gamma, True), rms_norm_silu_ref(x, gamma, True), exact
    )


def test_nan_stays_in_its_pixel(device):
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton

    x, gamma = clip((1, 96, 1, 3, 4), torch.float32, device)
    x[0, 5, 0, 1, 2] = float("nan")
    expected = rms_norm_silu_ref(x, gamma, True).isnan()
    assert expected.sum() == 96
    assert torch.equal(rms_norm_silu_triton(x, gamma, True).isnan(), expected)


def test_nothing_is_nothing(device):
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton

    x = torch.empty(1, 96, 0, 3, 4, device=device)
    assert rms_norm_silu_triton(x, x.new_ones(96), True).shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_what_the_model_computes(dtype):
    x, gamma = clip((1, 24, 2, 3, 4), dtype, "cpu")
    norm = RMSNorm(24).to(dtype)
    norm.gamma.data = gamma
    with torch.no_grad():
        assert torch.equal(rms_norm_silu_ref(x, gamma, False), norm(x))
        assert torch.equal(rms_norm_silu_ref(x, gamma, True), nn.SiLU()(norm(x)))


def test_a_ring_of_more_than_2_to_31_elements(device):
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_into_triton

    x, gamma = clip((1, 8, 3, 1, 1), torch.float16, device)
    slots = 2**28 + 5
    torch.use_deterministic_algorithms(False)  # or all 4 GB of it would be filled with NaN
    layout = {"dtype": x.dtype, "device": device, "memory_format": LAYOUT}
    ring = torch.empty((1, 8, slots, 1, 1), **layout)
    rms_norm_silu_into_triton(x, gamma, ring, slots - 2, True)
    exact = rms_norm_silu_ref(x.double(), gamma.double(), True)
    written = ring[:, :, [slots - 2, slots - 1, 0]]
    assert_as_accurate(written, rms_norm_silu_ref(x, gamma, True), exact)


@pytest.mark.parametrize("silu", [True, False])
def test_ops_are_registered_correctly(silu, device):
    x, gamma = clip((2, 12, 2, 3, 4), torch.float32, device)
    torch.library.opcheck(rms_norm_silu, (x, gamma, silu))
    torch.library.opcheck(rms_norm_silu, (x.transpose(3, 4), gamma, silu))
    ring = torch.zeros(2, 12, 4, 3, 4, device=device).contiguous(memory_format=LAYOUT)
    torch.library.opcheck(rms_norm_silu_into, (x, gamma, ring, 3, silu))


def test_the_op_that_writes_agrees_with_the_one_that_returns(device):
    x, gamma = clip((2, 12, 3, 3, 4), torch.float32, device)
    ring = torch.zeros(2, 12, 5, 3, 4, device=device).contiguous(memory_format=LAYOUT)
    rms_norm_silu_into(x, gamma, ring, 8, True)
    assert torch.equal(ring[:, :, [3, 4, 0]], rms_norm_silu(x, gamma, True))
    assert not ring[:, :, [1, 2]].any()


def test_bad_operands_are_refused(device):
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton

    x, gamma = clip((1, 8, 2, 3, 4), torch.float32, device)
    ring = torch.zeros(1, 8, 4, 3, 4, device=device).contiguous(memory_format=LAYOUT)
    with pytest.raises(UsageError, match=r"got torch.float32 \[1, 8, 2, 3\]"):
        rms_norm_silu(x[..., 0], gamma, True)
    with pytest.raises(UsageError, match="one number for each of 8 channels"):
        rms_norm_silu(x, gamma[:7], True)
    with pytest.raises(UsageError, match=r"got torch.int64; cast it"):
        rms_norm_silu(x, gamma.long(), True)
    with pytest.raises(UsageError, match=r"must be torch.float32 \[1, 8, >= 2, 3, 4\]"):
        rms_norm_silu_into(x, gamma, ring[:, :, :1], 0, True)
    with pytest.raises(UsageError, match="channels last; got strides"):
        rms_norm_silu_into(x, gamma, ring.contiguous(), 0, True)
    with pytest.raises(UsageError, match="got -1"):
        rms_norm_silu_into(x, gamma, ring, -1, True)
    with pytest.raises(UsageError, match="needs float16, bfloat16 or float32"):
        rms_norm_silu_triton(x.double(), gamma, True)
