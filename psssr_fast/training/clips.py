"""Training material: short high-resolution clips and the low-resolution pictures made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import InputError
from psssr_fast.resize import resize_frames

PHOTO_SUFFIXES = {".webp", ".jpg", ".jpeg", ".png"}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov"}
LONG_SIDE = 1280  # photos are reduced to this: what is left is sharp and free of sensor noise


@dataclass(frozen=True)
class HeldOut:
    """Frames at the end of a video that are never trained on."""

    name: str
    frames: int


@dataclass(frozen=True)
class Degradation:
    """How low-resolution clips are made: antialiased bicubic by ``scale``, noise, 8 bits.

    Attributes:
        scale: reduction in each direction.
        noise: largest standard deviation of Gaussian noise, in 8-bit steps; drawn per clip.
        noisy: share of the clips that get noise.
    """

    scale: int = 4
    noise: float = 3.0
    noisy: float = 0.3


def load_sources(folder: Path, held_out: tuple[HeldOut, ...] = ()) -> list[Tensor]:
    """Every photo and video below ``folder`` as uint8 ``[frames, 3, H, W]``; a photo is one frame.

    Raises:
        InputError: nothing to train on, or a held-out video is not there (renamed, it would be
            trained on).
    """
    sources = []
    paths = sorted(folder.rglob("*"))
    for rule in held_out:
        if rule.name not in {path.name for path in paths}:
            raise InputError(f"{folder}: held-out video {rule.name!r} is not below it")
    for path in paths:
        if path.suffix.lower() in PHOTO_SUFFIXES | VIDEO_SUFFIXES:
            hidden = sum(rule.frames for rule in held_out if rule.name == path.name)
            frames = _decode(path)
            sources.append(frames[: len(frames) - hidden])
    if not sources:
        raise InputError(f"{folder}: no photos or videos found below it; give a folder of some")
    return sources


def _decode(path: Path) -> Tensor:
    """All frames; of a long video every third, since neighbours are nearly equal."""
    with av.open(str(path)) as container:
        photo = path.suffix.lower() in PHOTO_SUFFIXES
        stride = 1 if photo or container.streams.video[0].frames <= 300 else 3
        frames = []
        for index, frame in enumerate(container.decode(video=0)):
            if index % stride == 0:
                shrink = min(1.0, LONG_SIDE / max(frame.width, frame.height)) if photo else 1.0
                size = (round(frame.width * shrink), round(frame.height * shrink))
                rgb = frame.reformat(*size, format="rgb24", interpolation="AREA")
                frames.append(np.ascontiguousarray(rgb.to_ndarray().transpose(2, 0, 1)))
    return torch.from_numpy(np.stack(frames))


def sample_clips(
    sources: list[Tensor], batch: int, frames: int, size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches of random clips, float ``[batch, 3, frames, size, size]`` in [-1, 1], without end.

    A source is drawn in proportion to its pixels; a photo becomes a clip by panning over it up to
    3 pixels a frame; every clip is flipped and turned at random.
    """
    share = torch.tensor([float(len(s) * s.shape[2] * s.shape[3]) ** 0.5 for s in sources])
    while True:
        picks = torch.multinomial(share, batch, replacement=True, generator=generator)
        clips = [_cut(sources[i], frames, size, generator) for i in picks.tolist()]
        yield torch.stack(clips).float().mul(2 / 255).sub(1)


def _cut(source: Tensor, frames: int, size: int, generator: torch.Generator) -> Tensor:
    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    total, _, height, width = source.shape
    start = draw(0, max(total - frames, 0))
    reach = 3 * (frames - 1) if total == 1 else 0
    y, x = draw(reach, height - size - reach), draw(reach, width - size - reach)
    dy, dx = (draw(-3, 3), draw(-3, 3)) if total == 1 else (0, 0)
    clip = torch.stack(
        [
            source[min(start + t, total - 1), :, y + dy * t :, x + dx * t :][:, :size, :size]
            for t in range(frames)
        ],
        dim=1,
    )
    if draw(0, 1):
        clip = clip.flip(-1)
    return clip.rot90(draw(0, 3), (-2, -1))


def degrade(clips: Tensor, degradation: Degradation, generator: torch.Generator) -> Tensor:
    """The low-resolution picture of each clip, resized back: same shape and range as ``clips``."""
    batch, _, frames, height, width = clips.shape
    flat = clips.transpose(1, 2).flatten(0, 1)
    small = (height // degradation.scale, width // degradation.scale)
    low = F.interpolate(flat, small, mode="bicubic", align_corners=False, antialias=True)
    deviation = torch.rand(batch, generator=generator) * degradation.noise * 2 / 255
    deviation *= torch.rand(batch, generator=generator) < degradation.noisy
    noise = torch.randn(low.shape, generator=generator)
    low = low + noise * deviation.repeat_interleave(frames)[:, None, None, None]
    low = ((low.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    picture = resize_frames(low, height, width)
    return picture.unflatten(0, (batch, frames)).transpose(1, 2)
