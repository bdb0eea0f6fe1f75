"""Kernels of the VAE address tensors of more than 2^31 elements: accesses of their last program.

The tensors are address space that nobody fills. Of a launch only the last program runs, in Triton's
interpreter; loads must lie in the operands, and what it would store is noted and not stored.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("addresses are seen in Triton's interpreter", allow_module_level=True)

import triton.runtime.interpreter as interpreter
from test_causal_conv3d import as_on

from psssr_fast.kernels import causal_conv3d as kernels
from psssr_fast.ops.causal_conv3d import LAYOUT

PIXELS = 4, 8  # of a frame, the first tile of which covers it


@dataclass
class Accesses:
    """Addresses of elements."""

    loaded: list[np.ndarray] = field(default_factory=list)
    stored: list[np.ndarray] = field(default_factory=list)

    def places(self, kind: str, tensor: torch.Tensor) -> np.ndarray:
        """Offsets in ``tensor``, in elements, of the accesses to it."""
        offsets = np.concatenate(getattr(self, kind)) - tensor.data_ptr()
        return np.unique(offsets[(offsets >= 0) & (offsets < tensor.nbytes)]) // 2


class LastProgram:
    """A kernel, of which only the last program is run."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        builder = interpreter.interpreter_builder
        set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx

        def launch(*arguments, **named):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(builder, "set_grid_dim", lambda *_: set_dim(*grid, 1, 1))
                patch.setattr(builder, "set_grid_idx", lambda *_: set_index(grid[0] - 1, 0, 0))
                self.kernel[(1,)](*arguments, **named)

        return launch


@contextmanager
def watched(*operands):
    """Run the last program of each launch inside, and note what it accesses."""
    builder, seen = interpreter.interpreter_builder, Accesses()
    load = builder.create_masked_load
    known = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in operands]

    def asked(pointers, mask):
        wanted = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        return pointers.data[wanted].astype(np.int64)

    def noting_load(pointers, mask, *rest, **named):
        addresses = asked(pointers, mask)
        inside = [(addresses >= first) & (addresses < end) for first, end in known]
        assert np.any(inside, axis=0).all(), "a load beside the operands"
        seen.loaded.append(addresses)
        return load(pointers, mask, *rest, **named)

    def noting_store(pointers, value, mask, *rest, **named):
        seen.stored.append(asked(pointers, mask))

    with pytest.MonkeyPatch.context() as patch, as_on(80):
        patch.setattr(builder, "create_masked_load", noting_load)
        patch.setattr(builder, "create_masked_store", noting_store)
        patch.setattr(kernels, "_implicit_gemm_kernel", LastProgram(kernels._implicit_gemm_kernel))
        yield seen


@pytest.fixture
def nothing_filled():
    torch.use_deterministic_algorithms(False)  # or all of the memory would be filled with NaN


def clip(channels, frames):
    shape = 1, channels, frames, *PIXELS
    return torch.empty(shape, dtype=torch.float16, memory_format=LAYOUT)


@pytest.mark.parametrize("channels", [(64, 64), (3, 4)], ids=["taps in turn", "taps as one"])
def test_a_convolution(channels, nothing_filled):
    inner, outer = channels
    frame = PIXELS[0] * PIXELS[1]
    frames = 2**31 // (frame * min(channels)) + 3
    x, residual = clip(inner, frames), clip(outer, frames)
    weight = torch.randn(outer, inner, 3, 3, 3).half().contiguous(memory_format=LAYOUT)
    bias = torch.randn(outer).half()
    with watched(x, residual, weight, bias) as seen:
        y = kernels.causal_conv3d_triton(x, weight, bias, residual, 0, frames, 0)
    assert y.numel() > 2**31
    last = np.arange((frames - 1) * frame * outer, frames * frame * outer)
    assert np.array_equal(seen.places("stored", y), last)
    assert np.array_equal(seen.places("loaded", residual), last)
    read = np.arange((frames - 3) * frame * inner, frames * frame * inner)
    assert np.array_equal(seen.places("loaded", x), read)


def test_doubling(nothing_filled):
    """The last program is of the last phase: odd rows and odd columns."""
    from psssr_fast.kernels.upsample_conv2d import upsample_conv2d_triton

    frames = 2**31 // (4 * PIXELS[0] * PIXELS[1] * 64) + 1
    x, phases = clip(16, frames), torch.randn(4, 64, 2, 2, 16).half().permute(0, 1, 4, 2, 3)
    bias = torch.randn(64).half()
    with watched(x, phases, bias) as seen:
        y = upsample_conv2d_triton(x, phases, bias)
    assert y.numel() > 2**31
    places = np.arange(y.numel() - y[0, :, 0].numel(), y.numel())
    rows, columns = places // (64 * 16) % 8, places // 64 % 16
    assert np.array_equal(seen.places("stored", y), places[(rows % 2 == 1) & (columns % 2 == 1)])
