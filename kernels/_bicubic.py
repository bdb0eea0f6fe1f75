"""Where each output sample of a bicubic enlargement looks, and with what weights."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

SHARPNESS = -0.75  # Keys' "a" as PyTorch has it; libswscale has -0.6, Pillow -0.5


def bicubic_taps(
    luma: int, outputs: int, step: int, shift: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The four samples of one axis of a plane that each output is made of.

    Output ``o`` lies at luma coordinate ``p = (o + 1/2) luma / outputs - 1/2`` (areas aligned, not
    corners), which is sample ``(p - shift) / step`` of the plane.

    Args:
        luma: samples that the luma plane has along the axis.
        outputs: of them there shall be.
        step, shift: luma pixels from one sample to the next, and from luma 0 to sample 0: 1 and 0
            for luma itself, 2 and 0 or 1/2 for chroma.
        device: of the results.

    Returns:
        Index of the first of the four, int64 ``[outputs]``; an index outside the plane, here or
        in the three that follow, means the border sample. Weights, fp64 ``[outputs, 4]``, sum 1.
    """
    # In whole numbers over a common denominator, so that the floor is exact.
    denominator = 2 * outputs * step
    numerator = (2 * torch.arange(outputs, device=device) + 1) * luma
    numerator -= outputs * round(1 + 2 * shift)
    below = numerator // denominator
    return below - 1, _cubic((numerator - below * denominator).double() / denominator)


def _cubic(t: Tensor) -> Tensor:
    """Weights of the samples at -1, 0, 1 and 2 for a point at ``t`` in [0, 1)."""
    a = SHARPNESS

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], dim=-1)


class Stretches(NamedTuple):
    """Taps of one axis, for groups of neighbouring outputs that read one stretch of samples.

    Attributes:
        first: sample at which each group's stretch begins, int32 ``[groups]``; like every index
            into a stretch it may lie outside the plane.
        weights: fp32 ``[length, groups * group]``, zero where an output does not look, and for
            the outputs past the end that fill the last group.
        length: samples of a stretch.
    """

    first: Tensor
    weights: Tensor
    length: int


@lru_cache(maxsize=64)
def stretches(
    group: int, luma: int, outputs: int, step: int, shift: float, device: torch.device
) -> Stretches:
    """:func:`bicubic_taps` for every ``group`` outputs, made once for a device.

    A stretch is as short as the weights that are not zero allow: at the luma's own size an output
    needs one sample, not four.
    """
    first, exact = bicubic_taps(luma, outputs, step, shift, torch.device("cpu"))
    weights = exact.float()
    output, tap = weights.nonzero(as_tuple=True)
    sample = first[output] + tap
    groups = -(-outputs // group)
    start = sample.new_full((groups,), luma).scatter_reduce(0, output // group, sample, "amin")
    place = sample - start[output // group]
    length = int(place.max()) + 1
    dense = weights.new_zeros(length, groups * group)
    dense[place, output] = weights[output, tap]
    return Stretches(start.int().to(device), dense.to(device), length)
