"""Training clips: sample ``i`` of a seed is the same clip whenever and wherever it is made."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from psssr_fast.errors import InputError, OutputError
from psssr_fast.files import make_folders, whole_file
from psssr_fast.resize import resize_frames
from psssr_fast.training.degradation import degrade
from psssr_fast.training.draws import Draw, derived_seed
from psssr_fast.training.manifest import Manifest, Source, eight_bit, sha256
from psssr_fast.training.motion import draw_path, film
from psssr_fast.video import open_reader

LONG_SIDE = 1280  # photos are shown at this size: what is left is sharp and free of sensor noise
DETAIL = 2  # and kept at up to so many times this, for the camera to look at between pixels
PHOTO_CACHE = 2**29  # bytes of decoded photos that a process keeps
TRAINING, HELD_OUT = 0, 1  # streams of samples


@dataclass(frozen=True)
class ClipShape:
    """What a sample is.

    Attributes:
        frames: of a clip.
        size: its height in pixels; a multiple of 16.
        degradation: what makes the low-resolution clip; see :mod:`psssr_fast.training.degradation`.
        scale: how much smaller that is.
        wide: its width in pixels; as its height if left out.
        margin: low-resolution pixels around a clip that are degraded and enlarged with it, then cut
            off: without them what borders on a clip is made up, as only a frame's edge should be.
    """

    frames: int = 8
    size: int = 128
    degradation: str = "light"
    scale: int = 4
    wide: int | None = None
    margin: int = 0

    @property
    def width(self) -> int:
        """Of a clip, in pixels."""
        return self.size if self.wide is None else self.wide

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of what is cut out for a clip: with its margin."""
        around = 2 * self.margin * self.scale
        return self.size + around, self.width + around


@dataclass(frozen=True)
class Batch:
    """Clips to learn from.

    Attributes:
        high: ``[batch, 3, frames, size, width]`` in [-1, 1].
        low: what the model gets: the degraded clip resized back, shape and range of ``high``.
        indices: of the samples.
    """

    high: Tensor
    low: Tensor
    indices: tuple[int, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same batch there."""
        return Batch(self.high.to(device), self.low.to(device), self.indices)


@dataclass
class Clips(Dataset[tuple[Tensor, Tensor]]):
    """Samples of a manifest: ``clips[i]`` is the high- and the low-resolution clip ``i``.

    Attributes:
        manifest: what there is.
        shape: of a sample.
        seed: of everything that is drawn.
        cache: folder for decoded videos, so that any frame is at hand; without one a video is
            decoded from its beginning for every sample.
        stream: ``HELD_OUT`` draws from the frames that are held out.
        repeat: only so many different samples, over and over; all different if left out.
    """

    manifest: Manifest
    shape: ClipShape
    seed: int
    cache: Path | None = None
    stream: int = TRAINING
    repeat: int | None = None
    _photos: OrderedDict[str, Tensor] = field(default_factory=OrderedDict, repr=False)
    _verified: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self._usable = [
            (source, spans) for source in self.manifest.sources if (spans := self._spans(source))
        ]
        if not self._usable:
            what = "held out" if self.stream == HELD_OUT else "to train on"
            raise InputError(
                f"{self.manifest.folder}: no clip of {self.shape.frames} frames and "
                f"{self.shape.width}x{self.shape.size} pixels is {what}; use smaller clips"
            )
        # the square root: between every file the same and every pixel the same
        self._weights = [
            (sum(b - a for a, b in spans) * source.height * source.width) ** 0.5
            for source, spans in self._usable
        ]

    def _spans(self, source: Source) -> list[tuple[int, int]]:
        """Shots that a clip fits into."""
        height, width = _reduced(source)
        if height < self.shape.seen[0] or width < self.shape.seen[1]:
            return []
        needed = 1 if source.is_photo else self.shape.frames
        shots = source.shots(self.stream == HELD_OUT)
        return [(a, b) for a, b in shots if b - a >= needed]

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Both clips, float ``[3, frames, size, width]`` in [-1, 1].

        Raises:
            InputError: a file is not the one of the manifest, or cannot be read.
        """
        number = index % self.repeat if self.repeat else index
        draw = Draw(derived_seed(self.seed, self.stream, number))
        source, spans = self._usable[draw.pick(self._weights)]
        high = self._photo_clip(source, draw) if source.is_photo else self._cut(source, spans, draw)
        if draw.chance(0.5):
            high = high.flip(-1)
        shape = self.shape
        turns = draw.integer(0, 3) if shape.size == shape.width else 2 * draw.integer(0, 1)
        high = high.rot90(turns, (-2, -1)).contiguous().mul(2).sub(1)
        low = degrade(high[None], shape.degradation, draw.seed(), shape.scale)[0]
        low = resize_frames(low.transpose(0, 1), *high.shape[-2:]).transpose(0, 1)
        cut = shape.margin * shape.scale
        inside = ..., slice(cut, cut + shape.size), slice(cut, cut + shape.width)
        return high[inside].contiguous(), low[inside].contiguous()

    def _photo_clip(self, source: Source, draw: Draw) -> Tensor:
        photo, shape, shown = self._photo(source), self.shape, _reduced(source)
        detail = max(photo.shape[-2:]) / max(shown)
        path = draw_path(draw, shown, shape.frames, shape.seen, detail)
        clip = film(photo, path, shape.frames, shape.seen, detail)
        return clip.mul(255).round().div(255)  # what a camera stores

    def _photo(self, source: Source) -> Tensor:
        if source.path in self._photos:
            self._photos.move_to_end(source.path)
            return self._photos[source.path]
        with Image.open(self._file(source)) as opened:
            picture = opened.convert("RGB")
        height, width = _reduced(source, DETAIL)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BOX)
        photo = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        self._photos[source.path] = photo
        while sum(x.nbytes for x in self._photos.values()) > PHOTO_CACHE and len(self._photos) > 1:
            self._photos.popitem(last=False)
        return photo

    def _cut(self, source: Source, spans: Sequence[tuple[int, int]], draw: Draw) -> Tensor:
        frames, (size, wide) = self.shape.frames, self.shape.seen
        start, stop = spans[draw.pick([b - a - frames + 1 for a, b in spans])]
        first = draw.integer(start, stop - frames)
        y, x = draw.integer(0, source.height - size), draw.integer(0, source.width - wide)
        video = self._frames(source, first, first + frames)
        part = np.ascontiguousarray(video[:, y : y + size, x : x + wide])
        return torch.from_numpy(part).permute(3, 0, 1, 2).float().div(255)

    def _frames(self, source: Source, start: int, stop: int) -> np.ndarray:
        """Frames of a video, uint8 ``[frames, height, width, 3]``."""
        if self.cache is None:
            return np.stack(_decode(self._file(source), start, stop))
        stored = self.cache / f"{source.sha256}.npy"
        if not stored.is_file():
            _store(np.stack(_decode(self._file(source), 0, source.frames)), stored)
        return np.asarray(np.load(stored, mmap_mode="r")[start:stop])

    def _file(self, source: Source) -> Path:
        """The file, whose hash is checked when it is first opened."""
        file = self.manifest.folder / source.path
        if source.path not in self._verified:
            if sha256(file) != source.sha256:
                raise InputError(f"{file}: not the file of the manifest (its hash differs)")
            self._verified.add(source.path)
        return file


def _reduced(source: Source, detail: int = 1) -> tuple[int, int]:
    """Height and width as they are sampled, or those times ``detail`` if there is as much."""
    longest = detail * LONG_SIDE
    shrink = min(1.0, longest / max(source.height, source.width)) if source.is_photo else 1.0
    return round(source.height * shrink), round(source.width * shrink)


def _decode(file: Path, start: int, stop: int) -> list[np.ndarray]:
    frames = []
    with open_reader(file) as reader:
        for index, frame in enumerate(reader):
            if index >= start:
                frames.append(eight_bit(frame))
            if index + 1 >= stop:
                break
    return frames


def _store(frames: np.ndarray, path: Path) -> None:
    """Under a name of its own first: another worker may be at it too."""
    try:
        make_folders(path.parent)
        with whole_file(path, replace=True) as file:
            np.save(file, frames)
    except OSError as error:
        raise OutputError(
            f"{path.parent}: decoded frames cannot be kept there: {error.strerror}; free "
            f"{frames.nbytes >> 20} MiB, or train with --no-frame-cache"
        ) from None


@dataclass(frozen=True)
class _Indices:
    """The samples of every step, from one on, for one of several processes."""

    first_step: int
    batch: int
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            start = (step * self.world + self.rank) * self.batch
            yield list(range(start, start + self.batch))
            step += 1


def batches(
    clips: Clips, batch: int, first_step: int = 0, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Batches without end; step ``s`` has samples ``s * batch * world`` and on.

    Args:
        clips: samples.
        batch: clips of one process in a step.
        first_step: where to begin: what a resumed run continues with.
        workers: processes that make samples ahead of time; 0 makes them here, when asked.
        rank, world: which of how many processes this is.
    """
    indices = _Indices(first_step, batch, rank, world)
    if not workers:
        for wanted in indices:
            yield _collate([(*clips[i], i) for i in wanted])
    loader: DataLoader[Batch] = DataLoader(
        _Numbered(clips),  # type: ignore[arg-type]
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=_collate,
        multiprocessing_context="spawn",
        generator=torch.Generator(),  # or the loader would draw from the global one
        worker_init_fn=_leave_at_once,
    )
    yield from loader


def _leave_at_once(worker: int) -> None:
    """Let a worker end without Python's clean-up: its thread that sends samples may be in the
    middle of one, and being stopped there aborts the process, with a message."""
    Finalize(None, os._exit, args=(0,), exitpriority=-1000)


@dataclass
class _Numbered(Dataset[tuple[Tensor, Tensor, int]]):
    """Samples with their indices."""

    clips: Clips

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return (*self.clips[index], index)


def _collate(samples: list[tuple[Tensor, Tensor, int]]) -> Batch:
    high, low, indices = zip(*samples, strict=True)
    return Batch(torch.stack(high), torch.stack(low), indices)
