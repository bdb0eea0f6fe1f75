from math import prod

import pytest
import torch

from psssr_fast.attention.sdpa import attention_sdpa
from psssr_fast.models.attention_windows import Layout
from psssr_fast.ops.window_attention import window_attention, window_attention_ref

NONE = (0, 0, 0)


def copied_windows(q, k, v, grid, window, shift, reach):
    """As the models do it without the op: a mask, and padded, permuted copies of the windows."""
    layout = Layout.over(grid, window, any(shift), q.device)
    q, k, v = (layout.split(x) for x in (q, k, v))
    return layout.join(attention_sdpa(q, k, v, layout.mask_for(1)), batch=1)


def work(grid, window, shift, reach, heads, head_dim):
    """Floating-point operations of the scores and sums that exist."""
    pairs = 1
    for size, length, move, tiles in zip(grid, window, shift, reach, strict=True):
        seen = 0
        for begin in range(-move, size, length):
            queries = min(size, begin + length) - max(0, begin)
            first, last = begin - tiles * length, begin + (tiles + 1) * length
            seen += queries * (min(size, last) - max(0, first))
        pairs *= seen
    return 4 * pairs * heads * head_dim


def run(measure, fn, device, grid, window, shift, reach, heads, head_dim):
    q, k, v = torch.randn(3, 1, prod(grid), heads, head_dim, dtype=torch.bfloat16, device=device)
    flops = work(grid, window, shift, reach, heads, head_dim)
    measure(fn, q, k, v, grid, window, shift, reach, bytes_moved=4 * q.nbytes, flops=flops)


@pytest.mark.parametrize("shift", [NONE, (2, 4, 4)], ids=["plain", "shifted"])
@pytest.mark.parametrize("fn", [copied_windows, window_attention], ids=["eager", "fused"])
def bench_window_attention(measure, fn, shift, device):
    grid = (8, 45, 80) if device.type == "cuda" else (8, 11, 20)  # nano at 720x1280, 180x320
    run(measure, fn, device, grid, (4, 8, 8), shift, NONE, heads=4, head_dim=32)


@pytest.mark.parametrize("fn", [window_attention_ref, window_attention], ids=["eager", "fused"])
def bench_tiles_and_their_neighbours(measure, fn, device):
    cuda = device.type == "cuda"
    grid = (8, 72, 240) if cuda else (2, 8, 16)  # half of 29 frames of 2160x3840
    run(measure, fn, device, grid, (4, 8, 8), NONE, (1, 1, 1), heads=12, head_dim=128)


@pytest.mark.parametrize("choice", ["shipped", "128 keys", "not ahead", "pointers"])
def bench_configurations(measure, choice, device, monkeypatch):
    """Full attention at 720p by launches that could be shipped instead."""
    if device.type != "cuda":
        pytest.skip("compares launches of the CUDA kernel")
    from psssr_fast.kernels import window_attention as kernel

    others = {
        "128 keys": kernel.Config(128, 128, 8, 2, tma=True),
        "not ahead": kernel.Config(128, 64, 8, 3, tma=True),
        "pointers": kernel.Config(128, 64, 8, 2),
    }
    if choice in others:
        monkeypatch.setattr(kernel, "choose_config", lambda *problem: others[choice])
    if torch.cuda.get_device_capability()[0] < 9 and choice not in ("shipped", "pointers"):
        pytest.skip("needs descriptors")
    whole = (1, 1, 28_800)
    run(measure, window_attention, device, whole, whole, NONE, NONE, heads=12, head_dim=128)
