"""What codecs do to frames: JPEG and H.264, encoded and decoded in memory."""

import io

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from psssr_fast.errors import InputError


def to_bytes(frames: Tensor) -> list[np.ndarray]:
    """Frames ``[frames, 3, H, W]`` in [0, 1] as uint8 ``[H, W, 3]``, rounded."""
    pixels = frames.clamp(0, 1).mul(255).round().to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def from_bytes(pictures: list[np.ndarray], like: Tensor) -> Tensor:
    """The reverse of :func:`to_bytes`, with the dtype and device of ``like``."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return pixels.to(like).div(255)


def jpeg(frames: Tensor, quality: float) -> Tensor:
    """Every frame ``[frames, 3, H, W]`` in [0, 1] through JPEG (4:2:0), quality 1 to 95."""
    decoded = []
    for picture in to_bytes(frames):
        memory = io.BytesIO()
        Image.fromarray(picture).save(memory, "JPEG", quality=round(quality))
        decoded.append(np.asarray(Image.open(memory)))
    return from_bytes(decoded, frames)


def h264(frames: Tensor, crf: int, preset: str = "medium") -> Tensor:
    """The clip ``[frames, 3, H, W]`` in [0, 1] through x264 (yuv420p) and back.

    Odd sides are padded by repeating the last row or column, and cut again. One thread and no
    macroblock tree: with it, x264's vector code gives other bytes for the same frames now and
    then, and a sample could not be made twice.

    Raises:
        InputError: this PyAV has no libx264.
    """
    height, width = frames.shape[-2:]
    pictures = [
        np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        for picture in to_bytes(frames)
    ]
    memory = io.BytesIO()
    options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
    try:
        with av.open(memory, "w", format="matroska") as container:
            stream = container.add_stream("libx264", rate=25, options=options)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    except av.error.EncoderNotFoundError:
        raise InputError(
            "the H.264 degradation needs PyAV with libx264, which this build lacks; "
            "install PyAV from PyPI, or use another degradation"
        ) from None
    memory.seek(0)
    with av.open(memory, "r") as container:
        container.streams.video[0].thread_count = 1
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == len(pictures)
    return from_bytes([picture[:height, :width] for picture in decoded], frames)
