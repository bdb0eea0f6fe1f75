from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.kernels import _launch
from psssr_fast.kernels._conv_tiles import Problem, candidate_tiles, choose_tile
from psssr_fast.models.vae import CausalCache, CausalConv3d
from psssr_fast.ops.causal_conv3d import (
    LAYOUT,
    causal_conv3d,
    causal_conv3d_ref,
    pack_conv_weight,
)
from psssr_fast.testing import assert_as_accurate


class Case(NamedTuple):
    """A convolution, and the architecture whose code path the interpreter runs it on."""

    arch: int
    cin: int
    cout: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    ring: int = 4
    first: int = 3
    frames: int = 2
    past: int = 1
    height: int = 5
    width: int = 9
    residual: bool = True
    batch: int = 1


# One of each way to walk the taps: lines of pixels, channels first, masked loads, taps and channels
# as one. Each has a slice of channels that is not full, and each begins near the end of the ring.
WAYS = [Case(90, 24, 96, height=9), Case(90, 24, 192), Case(80, 20, 40), Case(80, 3, 20)]
CASES = [
    *WAYS,
    Case(90, 16, 3, width=70, residual=False),
    Case(90, 8, 200, ring=3, first=7, frames=1, past=2),
    Case(90, 16, 40, (3, 1, 1), ring=5, first=1, frames=5, past=0),
    Case(90, 16, 40, (1, 1, 1), ring=2, first=0, past=5, batch=2),
    Case(90, 16, 40, (1, 3, 3), ring=2, first=0, past=0, height=1, width=130, batch=2),
    Case(80, 24, 96, ring=1, first=0, frames=1, past=0, height=17, width=17),
    Case(80, 16, 6, (3, 1, 1), ring=3, first=2, frames=3, past=0, height=1, width=1),
    Case(100, 16, 96, ring=5, first=4, frames=3, past=2),
    Case(100, 16, 3, frames=1, residual=False),
]
MUTATIONS = [
    ("(w >= 0) & (w < width)", "(w > 0) & (w < width)"),
    ("(k + c < CIN)", "(k + c < CIN - 1)"),
    ("(c < DEPTH)", "(c < DEPTH - 1)"),
    ("tl.maximum(KT - 1 - past - t, 0)", "0 * t"),
    ("slot >= ring, slot - ring", "slot > ring, slot - ring"),
    ("acc + tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)", "acc + tl.load("
     "residual + offset, mask=mask, other=0.0).to(tl.float32) * 0.0"),
    ("KH // 2 if SCALE == 1", "0 if SCALE == 1"),
    ("h, w = row + line + dh", "h, w = row + dh"),
    ("pixels[line + tap], block1", "pixels[line], block1"),
    ("n0 + N1 + tl.arange(0, N2", "n0 + tl.arange(0, N2"),
    ("rest // size * ROWS", "rest // size * (ROWS // 2)"),
    ("tap // KW % KH - pad_h", "tap // KW % KH"),
]  # fmt: skip


@contextmanager
def as_on(arch):
    """Have the interpreter run the code path of an architecture."""
    before, _launch.INTERPRETED_ARCHITECTURE = _launch.INTERPRETED_ARCHITECTURE, arch
    try:
        yield
    finally:
        _launch.INTERPRETED_ARCHITECTURE = before


def operands(case, dtype, device):
    """Ring with NaN in the slots that hold no frame, weight, bias, residual."""
    shape = case.batch, case.cin, case.ring, case.height, case.width
    x = torch.full(shape, torch.nan, dtype=dtype, device=device)
    history = min(case.past, case.kernel[0] - 1)
    slots = [(case.first + j) % case.ring for j in range(-history, case.frames)]
    x[:, :, slots] = torch.randn(*shape[:2], len(slots), *shape[3:], device=device).to(dtype)
    weight = torch.randn(case.cout, case.cin, *case.kernel, device=device)
    weight = (weight / weight[0].numel() ** 0.5).to(dtype)
    bias = torch.randn(case.cout, device=device).to(dtype)
    shape = case.batch, case.cout, case.frames, case.height, case.width
    residual = torch.randn(shape, device=device).to(dtype) if case.residual else None
    return x, weight, bias, residual


def check(cases=WAYS, dtype=torch.float16, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton

    for case in cases:
        tensors = operands(case, dtype, device)
        walk = case.first, case.frames, case.past
        with as_on(case.arch):
            actual = causal_conv3d_triton(*tensors, *walk)
        eager = causal_conv3d_ref(*tensors, *walk)
        doubles = (tensor if tensor is None else tensor.double() for tensor in tensors)
        assert_as_accurate(actual, eager, exact=causal_conv3d_ref(*doubles, *walk))
        assert actual.is_contiguous(memory_format=LAYOUT)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:3])))
def test_causal_conv3d(case, device):
    check([case], torch.float16, device)
    if device.type == "cuda":  # the interpreter multiplies bf16 wrongly
        check([case], torch.bfloat16, device)


@pytest.mark.parametrize("cin", [3, 20])
def test_fp32(cin, device):
    check([Case(80, cin, 20, frames=1, height=3, width=5)], torch.float32, device)


@pytest.mark.parametrize("cout", [96, 192])
def test_tiles_worth_timing_are_right_too(cout, device):
    from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton

    case = Case(90, 8, cout, ring=1, first=0, frames=1, past=0, width=7, residual=False)
    tensors = operands(case, torch.float16, device)
    problem = Problem(8, cout, case.kernel, 5, 7, 1, torch.float16, 90)
    with as_on(90):
        ours = [causal_conv3d_triton(*tensors, 0, 1, 0, tile) for tile in candidate_tiles(problem)]
    doubles = [tensor if tensor is None else tensor.double() for tensor in tensors]
    for y in ours:
        assert_as_accurate(y, causal_conv3d_ref(*tensors), exact=causal_conv3d_ref(*doubles))


def test_chunks_through_a_ring_are_the_whole_clip(device):
    from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton

    case = Case(90, 8, 16, ring=5, first=0, frames=5, past=0, residual=False)
    x, weight, bias, _ = operands(case, torch.float16, device)
    whole = causal_conv3d_triton(x, weight, bias, None, 0, 5, 0)
    ring, chunks = torch.full_like(x[:, :, :4], torch.nan), []
    for start, frames in ((0, 1), (1, 2), (3, 2)):
        for n in range(start, start + frames):
            ring[:, :, n % 4] = x[:, :, n]
        chunks.append(causal_conv3d_triton(ring, weight, bias, None, start, frames, start))
    assert torch.equal(torch.cat(chunks, dim=2), whole)


def test_it_is_the_layer_of_the_vae(device):
    layer = CausalConv3d(8, 16).half().to(device)
    weight, bias = pack_conv_weight(layer.weight.detach()), layer.bias.detach()
    x = torch.randn(1, 8, 5, 4, 6, device=device).half()
    cache, wide = CausalCache(), CausalConv3d(8, 16).double().to(device)
    wide.load_state_dict(layer.state_dict())
    with torch.no_grad():
        exact = wide(x.double(), CausalCache(keep=False))
        eager = torch.cat([layer(chunk, cache) for chunk in x.split([1, 4], dim=2)], dim=2)
    assert_as_accurate(causal_conv3d(x, weight, bias), eager, exact)
    assert_as_accurate(causal_conv3d_ref(x, weight, bias), eager, exact)


def test_packing_keeps_shape_and_values():
    weight = torch.randn(5, 3, 3, 1, 3)
    packed = pack_conv_weight(weight)
    assert torch.equal(packed, weight)
    assert packed.stride() == (27, 1, 9, 9, 3)
    assert pack_conv_weight(packed).data_ptr() == packed.data_ptr()


def test_op_is_registered_correctly(device):
    x = torch.randn(2, 5, 8, 4, 3, device=device).transpose(1, 2)  # not in any usual order
    weight, bias = torch.randn(6, 8, 3, 3, 3, device=device), torch.randn(6, device=device)
    residual = torch.randn(2, 6, 3, 4, 3, device=device).contiguous(memory_format=LAYOUT)
    torch.library.opcheck(causal_conv3d, (x, weight, bias))
    torch.library.opcheck(causal_conv3d, (x, pack_conv_weight(weight), bias, residual, 4, 3, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 8, 4, 4)}, "x must be"),
        ({"x": torch.zeros(1, 8, 3, 4, 4, dtype=torch.int32)}, "x must be"),
        ({"weight": torch.zeros(4, 7, 3, 3, 3)}, "weight must be"),
        ({"weight": torch.zeros(4, 8, 3, 2, 3)}, "weight must be"),
        ({"weight": torch.zeros(4, 8, 3, 3, 3, dtype=torch.float64)}, "weight must be"),
        ({"bias": torch.zeros(5)}, "bias must be"),
        ({"residual": torch.zeros(1, 4, 3, 4, 5)}, "residual must be"),
        ({"frames": 4}, "3 slots must hold"),
        ({"frames": 2, "past": 2}, "3 slots must hold"),
        ({"past": -1}, "3 slots must hold"),
    ],
)
def test_refusals(change, message):
    arguments = {
        "x": torch.zeros(1, 8, 3, 4, 4),
        "weight": torch.zeros(4, 8, 3, 3, 3),
        "bias": torch.zeros(4),
    }
    with pytest.raises(UsageError, match=f"causal_conv3d: {message}"):
        causal_conv3d(**arguments | change)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("cin, cout", [(96, 96), (96, 192), (192, 384), (384, 768), (16, 384)])
def test_no_channels_are_wasted(arch, cin, cout):
    problem = Problem(cin, cout, (3, 3, 3), 720, 1280, 1, torch.bfloat16, arch)
    for tile in candidate_tiles(problem):
        assert cin % tile.depth == 0 and cout % sum(tile.channels) == 0
        assert tile.tma == tile.tma_out == (arch >= 90)


@pytest.mark.parametrize("height, width", [(720, 1280), (360, 640), (180, 320), (90, 160)])
def test_few_pixels_are_wasted(height, width):
    tile = choose_tile(Problem(192, 192, (3, 3, 3), height, width, 1, torch.bfloat16, 90))
    rows, cols = -(-height // tile.rows) * tile.rows, -(-width // tile.cols) * tile.cols
    assert rows * cols <= 1.07 * height * width
