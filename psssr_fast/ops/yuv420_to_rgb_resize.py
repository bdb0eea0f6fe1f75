"""Decoded Y'CbCr 4:2:0 planes to the model's picture at output size, in one step.

Conversion to RGB and interpolation are both linear, so each plane is interpolated at the output's
pixels from the grid it was sampled on, and the colour matrix comes last. Nothing is rounded or
clamped in between, where converting first rounds to 8-bit RGB, and chroma is interpolated once,
not twice.
"""

import torch
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.kernels._bicubic import bicubic_taps
from psssr_fast.ops._yuv import STORAGE, check_coding, decoding

CHROMA_SHIFT = {"left": 0.0, "center": 0.5}  # luma pixels from luma 0 to chroma 0, horizontally
_NAME = "yuv420_to_rgb_resize"


def _check(
    luma: Tensor, chroma: tuple[Tensor, Tensor], size: tuple[int, int], bits: int, siting: str
) -> None:
    if siting not in CHROMA_SHIFT:
        raise UsageError(f"{_NAME}: siting must be 'left' or 'center'; got {siting!r}")
    if luma.dtype != STORAGE[bits] or luma.dim() != 3 or 0 in luma.shape[1:]:
        raise UsageError(
            f"{_NAME}: luma of {bits} bits must be {STORAGE[bits]} [T, h, w], not empty; got "
            f"{luma.dtype} {list(luma.shape)}; uint16 planes fit after .view(torch.int16)"
        )
    frames, h, w = luma.shape
    half = (frames, (h + 1) // 2, (w + 1) // 2)
    for plane in chroma:
        if plane.shape != half or plane.dtype != luma.dtype or plane.device != luma.device:
            raise UsageError(
                f"{_NAME}: chroma planes must be {luma.dtype} {list(half)} on {luma.device} for "
                f"luma {list(luma.shape)}; got {plane.dtype} {list(plane.shape)} on {plane.device}"
            )
    if size[0] < h or size[1] < w:
        raise UsageError(
            f"{_NAME}: enlarges only; got {w}x{h} to {size[1]}x{size[0]}. Convert at {w}x{h}, then "
            "shrink with psssr_fast.resize.resize_frames, which antialiases"
        )


def _enlarge_axis(plane: Tensor, axis: int, taps: tuple[Tensor, Tensor]) -> Tensor:
    first, weights = taps
    shape = [-1 if axis == each else 1 for each in range(plane.dim())]
    result = torch.zeros((), dtype=plane.dtype, device=plane.device)
    for place in range(4):
        index = (first + place).clamp(0, plane.shape[axis] - 1)
        weight = weights[:, place].to(plane.dtype).view(shape)
        result = result + weight * plane.index_select(axis, index)
    return result


def yuv420_to_rgb_resize_ref(
    luma: Tensor,
    chroma_u: Tensor,
    chroma_v: Tensor,
    height: int,
    width: int,
    matrix: int = 1,
    full_range: bool = False,
    bits: int = 8,
    siting: str = "left",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute :func:`yuv420_to_rgb_resize` in plain PyTorch, in fp32 or, for fp64, in fp64."""
    check_coding(_NAME, matrix, bits)
    _check(luma, (chroma_u, chroma_v), (height, width), bits, siting)
    h, w = luma.shape[1:]

    def enlarge(plane: Tensor, step: int, shift_y: float, shift_x: float) -> Tensor:
        rows = bicubic_taps(h, height, step, shift_y, plane.device)
        columns = bicubic_taps(w, width, step, shift_x, plane.device)
        exact = plane.to(torch.promote_types(dtype, torch.float32))
        return _enlarge_axis(_enlarge_axis(exact, 2, columns), 1, rows)

    to_rgb = decoding(matrix, full_range, bits)
    gray = enlarge(luma, 1, 0, 0) * to_rgb.luma_gain + to_rgb.luma_bias
    u = enlarge(chroma_u, 2, 0.5, CHROMA_SHIFT[siting]) - to_rgb.chroma_zero
    v = enlarge(chroma_v, 2, 0.5, CHROMA_SHIFT[siting]) - to_rgb.chroma_zero
    red = gray + to_rgb.red_v * v
    green = gray + to_rgb.green_u * u + to_rgb.green_v * v
    blue = gray + to_rgb.blue_u * u
    return torch.stack([red, green, blue], dim=1).clamp(-1, 1).to(dtype)


@torch.library.custom_op("psssr_fast::yuv420_to_rgb_resize", mutates_args=())
def yuv420_to_rgb_resize(
    luma: Tensor,
    chroma_u: Tensor,
    chroma_v: Tensor,
    height: int,
    width: int,
    matrix: int = 1,
    full_range: bool = False,
    bits: int = 8,
    siting: str = "left",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Convert 4:2:0 planes to RGB and enlarge them with bicubic interpolation.

    The filter is that of ``resize_frames``: Keys' with a = -0.75, areas aligned, border samples
    repeated. Shrinking is refused: it needs antialiasing.

    Args:
        luma: ``[T, h, w]`` levels: uint8, or int16 for 10 bits; any strides, T may be 0.
        chroma_u, chroma_v: ``[T, ceil(h / 2), ceil(w / 2)]``, Cb and Cr, dtype of ``luma``.
        height, width: of the output, at least ``h`` and ``w``.
        matrix: H.273's number of the colour matrix: 1 BT.709, 5 or 6 BT.601, 9 BT.2020, and 4, 7.
        full_range: black to white is 0 to 255 (8 bits); otherwise 16 to 235.
        bits: 8 or 10.
        siting: where chroma lies between luma columns: ``"left"``, on the even ones (MPEG-2,
            H.264, HEVC and AV1 unless they say otherwise), or ``"center"``, between two (MPEG-1,
            JPEG). Between rows it lies in the middle in both.
        dtype: of the output: fp32, fp16 or bf16.

    Returns:
        Contiguous ``[T, 3, height, width]`` RGB, clamped to [-1, 1].

    Raises:
        UsageError: planes that do not fit together, a smaller output, or an unknown matrix, depth,
            siting or dtype.
    """
    _check_dtype(dtype)
    return yuv420_to_rgb_resize_ref(
        luma, chroma_u, chroma_v, height, width, matrix, full_range, bits, siting, dtype
    )


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"{_NAME}: dtype must be float32, float16 or bfloat16; got {dtype}")


@yuv420_to_rgb_resize.register_kernel("cuda")
def _(
    luma: Tensor,
    chroma_u: Tensor,
    chroma_v: Tensor,
    height: int,
    width: int,
    matrix: int = 1,
    full_range: bool = False,
    bits: int = 8,
    siting: str = "left",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    from psssr_fast.kernels.yuv420_to_rgb_resize import yuv420_to_rgb_resize_triton

    _check_dtype(dtype)
    check_coding(_NAME, matrix, bits)
    _check(luma, (chroma_u, chroma_v), (height, width), bits, siting)
    to_rgb = decoding(matrix, full_range, bits)
    shift = CHROMA_SHIFT[siting]
    return yuv420_to_rgb_resize_triton(
        luma, chroma_u, chroma_v, height, width, to_rgb, shift, dtype
    )


@yuv420_to_rgb_resize.register_fake
def _(
    luma: Tensor,
    chroma_u: Tensor,
    chroma_v: Tensor,
    height: int,
    width: int,
    matrix: int = 1,
    full_range: bool = False,
    bits: int = 8,
    siting: str = "left",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    _check_dtype(dtype)
    check_coding(_NAME, matrix, bits)
    _check(luma, (chroma_u, chroma_v), (height, width), bits, siting)
    return luma.new_empty((luma.shape[0], 3, height, width), dtype=dtype)
