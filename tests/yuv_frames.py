"""Decoded frames as planes, and what libswscale makes of them: the other opinion on Y'CbCr."""

from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from psssr_fast.video.color import _ACCURATE, PixelConverter
from psssr_fast.video.info import ColorTags

ROOT = Path(__file__).parents[1]
CLIPS = [ROOT / "examples/demo_180p.mp4", ROOT / "tests/data/bbb_360p_heldout.mp4"]
ROUNDING = 12**-0.5  # levels, rms, that rounding to whole levels costs
FORMATS = {8: "yuv420p", 10: "yuv420p10le"}


def planes_of(frame: av.VideoFrame) -> list[Tensor]:
    """``[1, h, w]`` planes of a 4:2:0 frame: uint8, or int16 for 10 bits."""
    dtype = np.uint8 if frame.format.components[0].bits == 8 else np.int16
    found = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width]
        found.append(torch.from_numpy(rows.copy())[None])
    return found


def frame_of(planes: list[Tensor]) -> av.VideoFrame:
    """The inverse of :func:`planes_of`."""
    bits = 8 if planes[0].dtype == torch.uint8 else 10
    height, width = planes[0].shape[1:]
    frame = av.VideoFrame(width, height, FORMATS[bits])
    for target, plane in zip(frame.planes, planes, strict=True):
        size = plane.element_size()
        rows = np.zeros((target.height, target.line_size // size), plane.numpy().dtype)
        rows[:, : target.width] = plane[0].numpy()
        target.update(rows.tobytes())
    return frame


def real_planes(clip: Path, bits: int = 8) -> list[Tensor]:
    """Planes of a clip's first frame; for 10 bits with made-up low bits."""
    with av.open(str(clip)) as container:
        planes = planes_of(next(container.decode(video=0)))
    if bits == 8:
        return planes
    return [plane.short() * 4 + torch.randint(0, 4, plane.shape).short() for plane in planes]


def swscale_rgb(planes: list[Tensor], matrix: int, full_range: bool, scale: int = 1) -> Tensor:
    """``[1, 3, H, W]`` uint8 by libswscale in its accurate modes, chroma on even columns."""
    frame = frame_of(planes)
    frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
    converter = PixelConverter(ColorTags(1, 1, matrix, frame.color_range))
    rgb = converter._mark_chroma_left(frame).reformat(
        width=scale * frame.width,
        height=scale * frame.height,
        format="rgb24",
        interpolation=_ACCURATE,
    )
    return torch.from_numpy(rgb.to_ndarray().copy()).permute(2, 0, 1)[None]


def swscale_planes(pixels: np.ndarray, matrix: int, full_range: bool, bits: int) -> list[Tensor]:
    """Planes of ``[H, W, 3]`` uint8 RGB as the writer of videos makes them."""
    converter = PixelConverter(ColorTags(1, 1, matrix, 2 if full_range else 1))
    return planes_of(converter.from_rgb(pixels, FORMATS[bits]))


def rms(difference: Tensor) -> float:
    """Root of the mean square."""
    return difference.double().square().mean().sqrt().item()
