"""Material for training ``nano`` on a CPU: rendered once, kept in memory, cut at random.

High-resolution clips beside low-resolution versions of them, made beforehand, because resizing and
compressing on the fly would cost more than the network.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import InputError
from psssr_fast.resize import resize_frames
from psssr_fast.training.degradation import degrade

PHOTO_SUFFIXES = {".webp", ".jpg", ".jpeg", ".png"}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov"}
SCALE = 4
VERSIONS = ("bicubic", "light", "light")  # of each clip: how its low-resolution versions are made
PHOTO_SIDES = (1280, 800)  # long sides that photos are reduced to: what is left is sharp
PAN_SIDE = 2560  # the same for photos that the camera moves over, at half a pixel's precision
CUT = 25.0  # mean change between frames, in 8-bit steps, that no motion makes
MARGIN = 4  # low-resolution pixels around a crop that its enlargement sees
NOISE = (
    0.25,
    3.0,
)  # share of the bicubic clips with noise, largest standard deviation (8-bit steps)


@dataclass(frozen=True)
class HeldOut:
    """Frames at the end of a video that are never trained on."""

    name: str
    frames: int


@dataclass(frozen=True)
class Source:
    """A clip, ``high`` uint8 ``[frames, 3, H, W]``, and its :data:`VERSIONS` at a quarter."""

    high: Tensor
    lows: tuple[Tensor, ...]


@dataclass(frozen=True)
class Material:
    """All there is to train on: photos are clips of one frame."""

    photos: tuple[Source, ...]
    clips: tuple[Source, ...]


@dataclass(frozen=True)
class Batch:
    """High-resolution clips, and the low-resolution ones brought back to their size.

    Both ``[batch, 3, frames, H, W]`` in [-1, 1].
    """

    high: Tensor
    low: Tensor


def load_material(
    folder: Path,
    held_out: tuple[HeldOut, ...] = (),
    seed: int = 0,
    frames: int = 6,
    size: int = 320,
    pans: int = 5,
) -> Material:
    """Render every photo and video below ``folder``.

    Args:
        folder: photos and videos, in any tree.
        held_out: what to leave out.
        seed: of camera motion and degradation.
        frames: of a clip.
        size: side in pixels of the clips that a camera moving over a photo sees.
        pans: such clips of each photo.

    Raises:
        InputError: nothing to train on, or a held-out video is not there (renamed, it would be
            trained on).
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for rule in held_out:
        if rule.name not in {path.name for path in paths}:
            raise InputError(f"{folder}: held-out video {rule.name!r} is not below it")
    draw = random.Random(seed)
    photos, clips = list[Source](), list[Source]()
    for path in paths:
        if path.suffix.lower() in PHOTO_SUFFIXES:
            photo = _decode(path)[0]
            for side in PHOTO_SIDES:
                if side == PHOTO_SIDES[0] or max(photo.shape[1:]) > 1500:
                    photos.append(_source(_shrink(photo, side)[None], draw))
            large = _shrink(photo, PAN_SIDE)
            panned = (_pan(large, frames, size, draw) for _ in range(pans))
            clips.extend(_source(clip, draw) for clip in panned if clip is not None)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            hidden = sum(rule.frames for rule in held_out if rule.name == path.name)
            video = _decode(path)
            shots = _shots(video[: len(video) - hidden], frames)
            clips.extend(_source(shot, draw) for shot in shots)
    if not photos and not clips:
        raise InputError(f"{folder}: no photos or videos found below it; give a folder of some")
    return Material(tuple(photos), tuple(clips))


def _decode(path: Path) -> Tensor:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def _reduce(picture: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic reduction of bytes ``[frames, 3, H, W]``."""
    small = F.interpolate(picture.float(), (height, width), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).byte()


def _shrink(photo: Tensor, side: int) -> Tensor:
    height, width = photo.shape[1:]
    scale = side / max(height, width)
    if scale >= 1:
        return photo
    return _reduce(photo[None], round(height * scale), round(width * scale))[0]


def _source(high: Tensor, draw: random.Random) -> Source:
    """With its low-resolution versions; cut to multiples of 8 pixels."""
    height, width = (side // 8 * 8 for side in high.shape[-2:])
    high = high[..., :height, :width].contiguous()
    clip = high.float().mul(2 / 255).sub(1).transpose(0, 1)[None]
    lows = []
    for name in VERSIONS:
        low = degrade(clip, name, draw.randrange(2**31), SCALE)[0].transpose(0, 1)
        lows.append(low.add(1).mul(127.5).round().byte().contiguous())
    return Source(high, tuple(lows))


def _pan(photo: Tensor, frames: int, size: int, draw: random.Random) -> Tensor | None:
    """A clip of a camera moving over a photo, in steps of half a pixel if it is large enough."""
    half = min(photo.shape[1:]) >= 2 * (size + 24)
    grain = 2 if half else 1
    side = size * grain
    if min(photo.shape[1:]) < side + 24 * grain:
        return None
    still = draw.random() < 0.2
    offsets = []
    for length in photo.shape[1:]:
        speed = 0.0 if still else draw.uniform(-3, 3) * grain
        path = [round(speed * t + draw.uniform(-0.5, 0.5) * grain) for t in range(frames)]
        begin = draw.randint(-min(0, *path), length - side - max(0, *path))
        offsets.append([begin + step for step in path])
    views = [photo[:, y : y + side, x : x + side] for y, x in zip(*offsets, strict=True)]
    clip = torch.stack(views)
    return F.avg_pool2d(clip.float(), 2).round().byte() if half else clip


def _shots(video: Tensor, frames: int) -> list[Tensor]:
    """Clips spread over a video, none across a cut."""
    if len(video) < frames:
        return []
    count = max(8, min(28, len(video) // 12))
    starts = [i * (len(video) - frames) // (count - 1) for i in range(count)]
    shots = [video[start : start + frames].clone() for start in starts]
    return [s for s in shots if s.float().diff(dim=0).abs().mean((1, 2, 3)).max() <= CUT]


class Sampler:
    """Random crops of the material.

    Args:
        material: to cut from.
        seed: of every draw.
        clean: share of bicubic versions; the rest is ``light``.
    """

    def __init__(self, material: Material, seed: int, clean: float = 0.7) -> None:
        self._material = material
        self._draw = random.Random(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._clean = clean

    def batch(self, count: int, frames: int, crop: int) -> Batch:
        """``count`` clips of ``frames`` frames, ``crop`` pixels wide and high."""
        pairs = [self._cut(self._pick(frames), frames, crop) for _ in range(count)]
        high, low = (torch.stack(part).transpose(1, 2) for part in zip(*pairs, strict=True))
        return Batch(high, low)

    def _pick(self, frames: int) -> Source:
        photos, clips = self._material.photos, self._material.clips
        still = frames == 1 and photos and (not clips or self._draw.random() < 0.6)
        sources = photos if still else clips
        sizes = [(source.high.shape[-1] * source.high.shape[-2]) ** 0.5 for source in sources]
        return self._draw.choices(sources, sizes)[0]

    def _cut(self, source: Source, frames: int, crop: int) -> tuple[Tensor, Tensor]:
        draw = self._draw
        clean = draw.random() < self._clean
        low = source.lows[0] if clean else source.lows[draw.randint(1, len(VERSIONS) - 1)]
        side, (total, _, height, width) = crop // SCALE, low.shape
        first = draw.randint(0, total - frames)
        y, x = draw.randint(0, height - side), draw.randint(0, width - side)
        top, left = max(0, y - MARGIN), max(0, x - MARGIN)
        part = low[first : first + frames, :, top : y + side + MARGIN, left : x + side + MARGIN]
        part = part.float().mul(2 / 255).sub(1)
        if clean and draw.random() < NOISE[0]:
            noise = torch.randn(part.shape, generator=self._noise)
            part = part + noise * (draw.uniform(0, 2 * NOISE[1]) / 255)
        large = resize_frames(part, SCALE * part.shape[-2], SCALE * part.shape[-1])
        inside = SCALE * (y - top), SCALE * (x - left)
        large = large[:, :, inside[0] :, inside[1] :][:, :, :crop, :crop]
        high = source.high[first : first + frames, :, SCALE * y :, SCALE * x :][:, :, :crop, :crop]
        pair = torch.stack([high.float().mul(2 / 255).sub(1), large])
        if draw.random() < 0.5:
            pair = pair.flip(-1)
        turned = pair.rot90(draw.randint(0, 3), (-2, -1))
        return turned[0], turned[1]
