"""Between 8-bit interleaved frames, as decoders give them, and the model's planar pictures.

Both directions are computed in fp32 with the same operations in the same order everywhere, so the
compiled CPU kernel and the reference give the same bits.
"""

import torch
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.native import native_available


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[3] != 3:
        raise UsageError(
            f"unpack_frames: frames must be uint8 [T, H, W, 3]; got {frames.dtype} "
            f"{list(frames.shape)}; convert them to 8-bit RGB, channels last"
        )


def _check_picture(picture: Tensor) -> None:
    if not picture.is_floating_point() or picture.dim() != 4 or picture.shape[1] != 3:
        raise UsageError(
            f"pack_frames: picture must be floating point [T, 3, H, W]; got {picture.dtype} "
            f"{list(picture.shape)}; convert it to RGB planes in [-1, 1]"
        )


def unpack_frames_ref(frames: Tensor) -> Tensor:
    """Compute :func:`unpack_frames` in plain PyTorch."""
    _check_frames(frames)
    planar = frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    # A tensor, because PyTorch on a GPU divides by a number by multiplying with its reciprocal.
    return planar * 2 / planar.new_full((), 255.0) - 1


@torch.library.custom_op("psssr_fast::unpack_frames", mutates_args=())
def unpack_frames(frames: Tensor) -> Tensor:
    """Turn decoded frames into the model's picture: ``x * 2 / 255 - 1``, channels first.

    Args:
        frames: ``[T, H, W, 3]`` uint8 RGB; any strides, any of T, H and W may be 0.

    Returns:
        Contiguous ``[T, 3, H, W]`` fp32 in [-1, 1]; 0 is -1 and 255 is 1, exactly.

    Raises:
        UsageError: ``frames`` has another dtype or shape.
    """
    return unpack_frames_ref(frames)


@unpack_frames.register_fake
def _(frames: Tensor) -> Tensor:
    _check_frames(frames)
    count, height, width, channels = frames.shape
    return frames.new_empty((count, channels, height, width), dtype=torch.float32)


def pack_frames_ref(picture: Tensor, truncate: bool = False) -> Tensor:
    """Compute :func:`pack_frames` in plain PyTorch."""
    _check_picture(picture)
    levels = (picture.float().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) * 127.5
    whole = levels if truncate else levels.round()  # round() takes halves to even
    return whole.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op("psssr_fast::pack_frames", mutates_args=())
def pack_frames(picture: Tensor, truncate: bool = False) -> Tensor:
    """Turn the model's picture into 8-bit frames: ``(clamp(x, -1, 1) + 1) * 127.5``, channels last.

    Args:
        picture: ``[T, 3, H, W]`` floating point RGB, nominally in [-1, 1] and clamped to it;
            any strides, any of T, H and W may be 0. NaN becomes 0, infinities become 0 and 255.
        truncate: drop the fraction, as the public release does (half a level darker on average),
            instead of rounding to nearest with halves to even.

    Returns:
        Contiguous ``[T, H, W, 3]`` uint8.

    Raises:
        UsageError: ``picture`` has another dtype or shape.
    """
    return pack_frames_ref(picture, truncate)


@pack_frames.register_fake
def _(picture: Tensor, truncate: bool = False) -> Tensor:
    _check_picture(picture)
    count, channels, height, width = picture.shape
    return picture.new_empty((count, height, width, channels), dtype=torch.uint8)


if native_available():

    @unpack_frames.register_kernel("cpu")
    def _(frames: Tensor) -> Tensor:
        from psssr_fast import _C

        _check_frames(frames)
        return _C.unpack_frames(frames.contiguous())

    @pack_frames.register_kernel("cpu")
    def _(picture: Tensor, truncate: bool = False) -> Tensor:
        from psssr_fast import _C

        _check_picture(picture)
        return _C.pack_frames(picture.float().contiguous(), truncate)
