"""Decoded frames to the model's input: 180p to 720p, one window of 29 frames on a GPU."""

import pytest
import torch

from psssr_fast.ops.yuv420_to_rgb_resize import yuv420_to_rgb_resize, yuv420_to_rgb_resize_ref


@pytest.mark.parametrize("fn", [yuv420_to_rgb_resize_ref, yuv420_to_rgb_resize],
                         ids=["eager", "fused"])  # fmt: skip
def bench_yuv420_to_rgb_resize(measure, fn, device):
    frames = 29 if device.type == "cuda" else 2
    y = torch.randint(0, 256, (frames, 180, 320), dtype=torch.uint8, device=device)
    u, v = torch.randint(0, 256, (2, frames, 90, 160), dtype=torch.uint8, device=device)
    coding = 1, False, 8, "left", torch.bfloat16
    written = frames * 3 * 720 * 1280 * 2
    measure(fn, y, u, v, 720, 1280, *coding, bytes_moved=written + y.nbytes + 2 * u.nbytes)
