"""The model's picture to Y'CbCr 4:2:0 planes, as video encoders take them."""

import torch
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.ops._yuv import STORAGE, check_coding, encoding

_NAME = "rgb_to_yuv420"


def _check(picture: Tensor, matrix: int, bits: int) -> None:
    check_coding(_NAME, matrix, bits)
    if not picture.is_floating_point() or picture.dim() != 4 or picture.shape[1] != 3:
        raise UsageError(
            f"{_NAME}: picture must be floating point [T, 3, H, W]; got {picture.dtype} "
            f"{list(picture.shape)}; convert it to RGB planes in [-1, 1]"
        )


def _halve(picture: Tensor) -> Tensor:
    """Chroma's filter: [1 2 1] / 4 around even columns, mean of two rows, borders repeated."""
    height, width = picture.shape[-2:]
    even = torch.arange(0, width, 2, device=picture.device)
    left = picture.index_select(-1, (even - 1).clamp(min=0))
    right = picture.index_select(-1, (even + 1).clamp(max=width - 1))
    columns = (left + 2 * picture[..., ::2] + right) / 4
    below = torch.arange(1, height + 1, 2, device=picture.device).clamp(max=height - 1)
    return (columns[..., ::2, :] + columns.index_select(-2, below)) / 2


def unrounded_yuv420(
    picture: Tensor, matrix: int, full_range: bool, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels before rounding, in fp32 or, for an fp64 picture, in fp64."""
    exact = picture.to(torch.promote_types(picture.dtype, torch.float32))
    exact = exact.nan_to_num(nan=-1.0).clamp(-1, 1)
    y, u, v = encoding(matrix, full_range, bits)

    def weigh(channels: Tensor, weights: tuple[float, ...]) -> Tensor:
        red, green, blue = channels.unbind(1)
        levels = weights[0] * red + weights[1] * green + weights[2] * blue + weights[3]
        return levels.clamp(0, 2**bits - 1)  # full-range chroma would reach half a level further

    half = _halve(exact) if exact.numel() else exact[..., ::2, ::2]
    return weigh(exact, y), weigh(half, u), weigh(half, v)


def rgb_to_yuv420_ref(
    picture: Tensor, matrix: int = 1, full_range: bool = False, bits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`rgb_to_yuv420` in plain PyTorch."""
    _check(picture, matrix, bits)
    y, u, v = unrounded_yuv420(picture, matrix, full_range, bits)
    storage = STORAGE[bits]
    return y.round().to(storage), u.round().to(storage), v.round().to(storage)


@torch.library.custom_op("psssr_fast::rgb_to_yuv420", mutates_args=())
def rgb_to_yuv420(
    picture: Tensor, matrix: int = 1, full_range: bool = False, bits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Convert RGB to 4:2:0 planes, chroma on the even columns and between two rows.

    That is where MPEG-2, H.264, HEVC and AV1 take it to be unless told otherwise, and what
    ``psssr_fast.video`` writes. Chroma is averaged with [1 2 1] / 4 over columns, centred there,
    and over two rows; an odd last row or column counts as repeated.

    Args:
        picture: ``[T, 3, H, W]`` floating point RGB, nominally in [-1, 1] and clamped to it; any
            strides, any of T, H and W may be 0. NaN counts as -1.
        matrix: H.273's number of the colour matrix: 1 BT.709, 5 or 6 BT.601, 9 BT.2020, and 4, 7.
        full_range: black to white becomes 0 to 255 (8 bits); otherwise 16 to 235.
        bits: 8 or 10.

    Returns:
        Y ``[T, H, W]``, U and V ``[T, ceil(H / 2), ceil(W / 2)]``, contiguous: uint8, or int16 for
        10 bits. Levels are rounded to nearest; where fp32 cannot tell which is nearer, a kernel
        may choose the other of the two.

    Raises:
        UsageError: ``picture`` has another dtype or shape, or an unknown matrix or depth.
    """
    y, u, v = rgb_to_yuv420_ref(picture, matrix, full_range, bits)
    return y.contiguous(), u.contiguous(), v.contiguous()


@rgb_to_yuv420.register_kernel("cuda")
def _(
    picture: Tensor, matrix: int = 1, full_range: bool = False, bits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    from psssr_fast.kernels.rgb_to_yuv420 import rgb_to_yuv420_triton

    _check(picture, matrix, bits)
    return rgb_to_yuv420_triton(picture, encoding(matrix, full_range, bits), bits)


@rgb_to_yuv420.register_fake
def _(
    picture: Tensor, matrix: int = 1, full_range: bool = False, bits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    _check(picture, matrix, bits)
    frames, _, height, width = picture.shape
    y = picture.new_empty((frames, height, width), dtype=STORAGE[bits])
    u = y.new_empty((frames, (height + 1) // 2, (width + 1) // 2))
    return y, u, torch.empty_like(u)
