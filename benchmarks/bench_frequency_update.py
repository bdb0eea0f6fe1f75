"""The frequency-domain update at 720p, and three ways to compute its 19x19 low-pass in PyTorch."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.ops.frequency_update import (
    frequency_update_ref,
    separable_low_pass,
    spatial_low_pass,
    update_frequencies,
)

UPDATES = {
    "eager_fft": partial(frequency_update_ref, settings=FrequencyUpdate(filter="fft")),
    "eager_spatial19": partial(frequency_update_ref, settings=FrequencyUpdate()),
    "op": partial(update_frequencies, settings=FrequencyUpdate()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("fn", UPDATES.values(), ids=UPDATES)
def bench_frequency_update(measure, fn, dtype, device):
    frames = 29 if device.type == "cuda" else 2
    consistent, sharp = torch.randint(256, (2, frames, 3, 720, 1280), device=device)
    if dtype.is_floating_point:
        consistent, sharp = consistent / 255, sharp / 255
    consistent, sharp = consistent.to(dtype), sharp.to(dtype)
    measure(fn, consistent, sharp, bytes_moved=3 * consistent.nbytes)


def conv2d_dense(lumas: Tensor) -> Tensor:
    columns, rows = separable_low_pass(0.2, 2)
    taps = (columns.T @ rows).to(lumas)[None, None]
    return F.conv2d(F.pad(lumas[:, None], (9,) * 4, mode="replicate"), taps)[:, 0]


def conv2d_separable(lumas: Tensor) -> Tensor:
    columns, rows = (taps.to(lumas) for taps in separable_low_pass(0.2, 2))
    padded = F.pad(lumas[:, None], (9,) * 4, mode="replicate")
    terms = F.conv2d(padded, rows[:, None, None, :])
    return F.conv2d(terms, columns[None, :, :, None])[:, 0]


def by_fft(lumas: Tensor) -> Tensor:
    return spatial_low_pass(lumas, 0.2, 2)


@pytest.mark.parametrize("fn", [conv2d_dense, conv2d_separable, by_fft])
def bench_low_pass(measure, fn, device):
    lumas = torch.rand(2, 720, 1280, device=device)
    assert (fn(lumas) - by_fft(lumas)).abs().max() < 1e-5
    measure(fn, lumas, bytes_moved=2 * lumas.nbytes)
