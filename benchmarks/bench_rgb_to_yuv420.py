"""The model's output to what an encoder takes: 29 frames of 720p on a GPU."""

import pytest
import torch

from psssr_fast.ops.rgb_to_yuv420 import rgb_to_yuv420, rgb_to_yuv420_ref


@pytest.mark.parametrize("fn", [rgb_to_yuv420_ref, rgb_to_yuv420], ids=["eager", "fused"])
def bench_rgb_to_yuv420(measure, fn, device):
    frames = 29 if device.type == "cuda" else 2
    picture = torch.rand(frames, 3, 720, 1280, device=device).mul(2).sub(1).bfloat16()
    written = picture.nelement() // 2  # a byte of luma a pixel, and half a byte of chroma
    measure(fn, picture, bytes_moved=picture.nbytes + written)
