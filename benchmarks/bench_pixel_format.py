"""The conversions around the model, on one window of the model: 33 frames of 720p."""

import pytest
import torch

from psssr_fast.ops.pixel_format import (
    pack_frames,
    pack_frames_ref,
    unpack_frames,
    unpack_frames_ref,
)

WINDOW = (33, 720, 1280, 3)


@pytest.mark.parametrize("fn", [unpack_frames_ref, unpack_frames], ids=["eager", "op"])
def bench_unpack_frames(measure, fn, device):
    frames = torch.randint(0, 256, WINDOW, dtype=torch.uint8, device=device)
    measure(fn, frames, bytes_moved=5 * frames.numel())


@pytest.mark.parametrize("fn", [pack_frames_ref, pack_frames], ids=["eager", "op"])
def bench_pack_frames(measure, fn, device):
    frames = torch.randint(0, 256, WINDOW, dtype=torch.uint8, device=device)
    measure(fn, unpack_frames_ref(frames), bytes_moved=5 * frames.numel())
