"""Frames in memory: what users pass and get back, and the planar tensors of the pipeline."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from psssr_fast.errors import InputError
from psssr_fast.ops.pixel_format import pack_frames, unpack_frames

Picture = TypeVar("Picture", np.ndarray, Tensor)
"""A frame or clip: numpy uint8 or uint16 ``[..., height, width, 3]`` or torch float ``[..., 3,
height, width]`` in [0, 1]; RGB. White is 255, 65535 or 1."""

_WORDS = 65535.0


def check_frame(frame: Picture, first: Picture | None = None) -> Picture:
    """Return ``frame`` if it is a picture, of the kind and size of ``first``.

    Raises:
        InputError: it is not.
    """
    shape = tuple(getattr(frame, "shape", ()))
    if isinstance(frame, np.ndarray):
        fits = frame.dtype in (np.uint8, np.uint16) and len(shape) == 3 and shape[2] == 3
    else:
        fits = isinstance(frame, Tensor) and frame.is_floating_point()
        fits = fits and len(shape) == 3 and shape[0] == 3
    if not fits or 0 in shape:
        raise InputError(
            "a frame must be a numpy uint8 or uint16 array [height, width, 3] or a torch float "
            f"tensor [3, height, width] in [0, 1]; got {type(frame).__name__} "
            f"{getattr(frame, 'dtype', '')} {list(shape)}"
        )
    arrays = isinstance(frame, np.ndarray) and isinstance(first, np.ndarray)
    differ = arrays and frame.dtype != first.dtype  # type: ignore[union-attr]
    if first is not None and (
        type(frame) is not type(first) or shape != tuple(first.shape) or differ
    ):
        dtypes = f", {frame.dtype} after {first.dtype}" if differ else ""
        raise InputError(
            "all frames of a stream must be of one kind and size; got "
            f"{type(frame).__name__} {list(shape)} after {type(first).__name__} "
            f"{list(first.shape)}{dtypes}"
        )
    return frame


def frame_size(frame: Picture) -> tuple[int, int]:
    """Height and width."""
    height, width = frame.shape[:2] if isinstance(frame, np.ndarray) else frame.shape[-2:]
    return height, width


def to_planar(frame: Picture) -> Tensor:
    """One frame as fp32 ``[3, height, width]`` in [-1, 1].

    Raises:
        InputError: values of a float frame are not finite or far from [0, 1].
    """
    if isinstance(frame, np.ndarray):
        if frame.dtype == np.uint16:
            levels = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)
            return (levels * 2 / _WORDS - 1).contiguous()
        return unpack_frames(torch.from_numpy(np.ascontiguousarray(frame))[None])[0]
    low, high = (float(value) for value in frame.aminmax())
    if not (low >= -0.5 and high <= 1.5):  # also false for NaN; overshoot of a resize may pass
        raise InputError(
            f"a float frame must be RGB in [0, 1]; got values from {low:g} to {high:g}. "
            "Divide 8-bit values by 255; add 1 to values in [-1, 1] and halve them"
        )
    return frame.float() * 2 - 1


def to_bytes(picture: Tensor, truncate: bool = False) -> np.ndarray:
    """One frame ``[3, height, width]`` in [-1, 1] as uint8 ``[height, width, 3]``."""
    return pack_frames(picture[None].cpu(), truncate)[0].numpy()


def to_words(picture: Tensor) -> np.ndarray:
    """One frame ``[3, height, width]`` in [-1, 1] as uint16 ``[height, width, 3]``, rounded."""
    clamped = picture.float().nan_to_num(nan=-1.0).clamp(-1, 1)
    levels = ((clamped + 1) * (_WORDS / 2)).round().permute(1, 2, 0)
    return levels.cpu().contiguous().numpy().astype(np.uint16)


def from_planar(picture: Tensor, like: Picture, truncate: bool = False) -> Picture:
    """One frame ``[3, height, width]`` in [-1, 1] as the kind, device and dtype of ``like``.

    ``truncate`` concerns uint8 only: it is what the public release does to its 8 bits.
    """
    if isinstance(like, np.ndarray):
        if like.dtype == np.uint16:
            return to_words(picture)
        return to_bytes(picture, truncate)
    return ((picture + 1) / 2).clamp(0, 1).to(like.device, like.dtype)
