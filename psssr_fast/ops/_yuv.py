"""What the numbers in Y'CbCr planes mean (ITU-T H.273), for the ops that convert them."""

from typing import NamedTuple

import torch

from psssr_fast.errors import UsageError
from psssr_fast.h273 import RED_AND_BLUE

# int16 holds 10 bits as well as uint16 does, and PyTorch can slice, copy, compare and index it;
# of uint16 it knows little more than the conversion. Between the two, view() costs nothing.
STORAGE = {8: torch.uint8, 10: torch.int16}


class Decoding(NamedTuple):
    """Levels to RGB in [-1, 1].

    With ``gray = luma_gain Y + luma_bias``, ``u = U - chroma_zero``, ``v = V - chroma_zero``::

        R = gray + red_v v,  G = gray + green_u u + green_v v,  B = gray + blue_u u
    """

    luma_gain: float
    luma_bias: float
    chroma_zero: float
    red_v: float
    green_u: float
    green_v: float
    blue_u: float


def check_coding(op: str, matrix: int, bits: int) -> None:
    """Refuse what the tables above do not list.

    Raises:
        UsageError: no such matrix, or no such depth.
    """
    if matrix not in RED_AND_BLUE:
        raise UsageError(
            f"{op}: matrix {matrix} is not supported; need one of H.273's "
            f"{', '.join(map(str, RED_AND_BLUE))} (1 is BT.709, 5 and 6 BT.601, 9 BT.2020)"
        )
    if bits not in STORAGE:
        raise UsageError(f"{op}: {bits} bits are not supported; need 8 or 10: convert the planes")


def _levels(full_range: bool, bits: int) -> tuple[float, float, float, float]:
    """Black, black to white, zero chroma, and the span of chroma, in levels."""
    step, peak = 2.0 ** (bits - 8), 2.0**bits - 1
    if full_range:
        return 0.0, peak, 128 * step, peak
    return 16 * step, 219 * step, 128 * step, 224 * step


def decoding(matrix: int, full_range: bool, bits: int) -> Decoding:
    """Coefficients from Y'CbCr levels to R'G'B' in [-1, 1]."""
    black, luma_span, zero, chroma_span = _levels(full_range, bits)
    red, blue = RED_AND_BLUE[matrix]
    green = 1 - red - blue
    red_v, blue_u = 4 * (1 - red) / chroma_span, 4 * (1 - blue) / chroma_span
    return Decoding(
        luma_gain=2 / luma_span,
        luma_bias=-2 * black / luma_span - 1,
        chroma_zero=zero,
        red_v=red_v,
        green_u=-blue_u * blue / green,
        green_v=-red_v * red / green,
        blue_u=blue_u,
    )


def encoding(matrix: int, full_range: bool, bits: int) -> tuple[tuple[float, ...], ...]:
    """Coefficients from R'G'B' in [-1, 1] to levels: of Y, U and V, each red, green, blue, zero."""
    black, luma_span, zero, chroma_span = _levels(full_range, bits)
    red, blue = RED_AND_BLUE[matrix]
    green = 1 - red - blue
    luma, u, v = luma_span / 2, chroma_span / (4 * (1 - blue)), chroma_span / (4 * (1 - red))
    return (
        (luma * red, luma * green, luma * blue, black + luma),
        (-u * red, -u * green, u * (1 - blue), zero),
        (v * (1 - red), -v * green, -v * blue, zero),
    )
