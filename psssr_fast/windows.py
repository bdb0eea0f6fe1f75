"""Overlapping windows in time and space: where they lie, and how their results are blended.

Every frame and pixel is covered. Where windows overlap, each result counts with a weight that
falls linearly towards the window's end, and the sum is divided by the sum of the weights. In time
no window reaches from one scene into the next, so nothing is blended across a cut.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.config import Windows
from psssr_fast.errors import UsageError

Item = TypeVar("Item")
Feather = Literal["shared", "released"]


def window_starts(length: int, size: int, overlap: int) -> tuple[int, ...]:
    """First positions of the windows over ``length`` positions.

    Windows lie ``size - overlap`` apart; the last is moved back to end where the axis ends, so it
    may share more than ``overlap``, and with more than one other. An axis no longer than ``size``
    is one window.

    Raises:
        UsageError: ``length`` is less than 1, or ``overlap`` not in [0, size).
    """
    if length < 1 or not 0 <= overlap < size:
        raise UsageError(
            f"windows need length >= 1 and 0 <= overlap < size; got length={length}, size={size}, "
            f"overlap={overlap}"
        )
    last = length - size
    if last <= 0:
        return (0,)
    return (*range(0, last, size - overlap), last)


def window_weights(
    start: int,
    previous: int | None,
    following: int | None,
    size: int,
    overlap: int,
    feather: Feather,
) -> Tensor:
    """Weights of one window along one axis, not yet normalised.

    Args:
        start: of this window.
        previous, following: start of its neighbours; ``None`` where the axis ends.
        size: of all windows.
        overlap: what neighbours share unless the last was moved; only ``"released"`` reads it.
        feather: ``"shared"`` ramps, strictly between 0 and 1, over what is really shared with a
            neighbour; ``"released"`` ramps from 1e-6 to 1 over ``overlap`` at both ends always.

    Returns:
        fp32 ``[size]``, positive.
    """
    if feather == "released":
        rise = fall = torch.linspace(1e-6, 1, overlap)[:size]
    else:
        shared_before = 0 if previous is None else previous + size - start
        shared_after = 0 if following is None else start + size - following
        rise, fall = _ramp(shared_before), _ramp(shared_after)
    weights = torch.ones(size)
    weights[: len(rise)] = rise
    end = size - len(fall)
    weights[end:] = torch.minimum(weights[end:], fall.flip(0))
    return weights


def _ramp(shared: int) -> Tensor:
    return torch.arange(1, shared + 1) / (shared + 1)


def axis_weights(
    starts: tuple[int, ...], size: int, length: int, overlap: int, feather: Feather
) -> Tensor:
    """:func:`window_weights` of all windows of an axis, ``[windows, min(size, length)]``."""
    size = min(size, length)
    neighbours = zip((None, *starts), starts, (*starts[1:], None), strict=False)
    weights = [
        window_weights(start, previous, following, size, overlap, feather)
        for previous, start, following in neighbours
    ]
    return torch.stack(weights)


@dataclass(frozen=True)
class Tile:
    """A window in space.

    Attributes:
        y, x: the rows and columns it covers.
        weight: fp32 ``[height, width]`` of the tile, positive, not normalised.
    """

    y: slice
    x: slice
    weight: Tensor


def tiles(height: int, width: int, windows: Windows) -> list[Tile]:
    """Cut a picture of ``height`` by ``width`` pixels, row by row."""
    axes = []
    for length, size in ((height, windows.height), (width, windows.width)):
        starts = window_starts(length, size, windows.overlap_pixels)
        weights = axis_weights(starts, size, length, windows.overlap_pixels, windows.feather)
        spans = [slice(start, start + min(size, length)) for start in starts]
        axes.append(list(zip(spans, weights, strict=True)))
    rows, columns = axes
    return [Tile(y, x, down[:, None] * across) for y, down in rows for x, across in columns]


class TileBlender:
    """Puts the tiles of one clip together.

    Args:
        shape: ``(frames, channels, height, width)`` of the clip.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, tile: Tile, picture: Tensor) -> None:
        """Take the result of a tile, ``[frames, channels, tile height, tile width]``."""
        if picture.shape == self.shape:
            self._sum = picture
            return
        if self._sum is None or self._weight is None:
            self._sum = picture.new_zeros(self.shape, dtype=torch.float32)
            self._weight = self._sum.new_zeros(self.shape[2:])
        weight = tile.weight.to(picture.device)
        self._sum[:, :, tile.y, tile.x] += weight * picture
        self._weight[tile.y, tile.x] += weight

    def result(self) -> Tensor:
        """The clip: the very tensor if one tile covers it all, else a new one in fp32."""
        assert self._sum is not None, "no tile was added"
        if self._weight is None:
            return self._sum
        assert self._weight.min() > 0, "the tiles do not cover the picture"
        return self._sum.div_(self._weight)


@dataclass(frozen=True)
class TimeWindow(Generic[Item]):
    """A window in time.

    Attributes:
        start: index of its first frame in the whole stream.
        items: its frames.
        previous_start, next_start: of the neighbours; ``None`` at the ends of the scene.
    """

    start: int
    items: tuple[Item, ...]
    previous_start: int | None
    next_start: int | None

    @property
    def is_last(self) -> bool:
        """Whether its scene ends with this window."""
        return self.next_start is None

    @property
    def finished(self) -> int:
        """How many of its first frames no later window covers."""
        return len(self.items) if self.next_start is None else self.next_start - self.start


Cuts = Collection[int] | Callable[[Iterable[Item]], Iterator[tuple[Item, bool]]]
"""Where scenes begin: indices of their first frames in the whole stream, or what finds out: a
function of the frames that gives each back with whether it begins a scene."""


def stream_windows(
    frames: Iterable[Item], windows: Windows, cuts: Cuts[Item] = (), first: int = 0
) -> Iterator[TimeWindow[Item]]:
    """Cut a stream of unknown length, scene by scene, where :func:`window_starts` would.

    To know where the next window starts, a window leaves only when ``frames - overlap_frames``
    frames after its end were read, or its scene ended. So ``2 frames - overlap_frames`` frames
    are held at most, besides what ``cuts`` holds.

    Args:
        frames: the stream, or the part of it that begins with the first frame of a window.
        windows: the settings.
        cuts: where scenes begin.
        first: index of the first frame in the whole stream.
    """
    if callable(cuts):
        marked = cuts(frames)
    else:
        known = frozenset(cuts)
        marked = ((frame, index in known) for index, frame in enumerate(frames, first))
    for scene in _scenes(marked):
        for window in _scene_windows(scene, windows, first):
            yield window
            first = window.start + len(window.items)


def _scenes(marked: Iterator[tuple[Item, bool]]) -> Iterator[Iterator[Item]]:
    """The frames of each scene; they must be consumed before the next scene is asked for."""
    begun: list[Item] = [frame for frame, _ in islice(marked, 1)]

    def scene() -> Iterator[Item]:
        yield begun.pop()
        for frame, begins in marked:
            if begins:
                begun.append(frame)
                return
            yield frame

    while begun:
        yield scene()


def _scene_windows(
    scene: Iterator[Item], windows: Windows, start: int
) -> Iterator[TimeWindow[Item]]:
    size, stride = windows.frames, windows.frames - windows.overlap_frames
    held = list(islice(scene, size + stride))
    previous = None
    while held:
        # The scene's end is known once `held` is not full; it may also be right here.
        remaining = len(held) - size
        following = start + min(stride, remaining) if remaining > 0 else None
        yield TimeWindow(start, tuple(held[:size]), previous, following)
        if following is None:
            return
        del held[: following - start]
        held.extend(islice(scene, size + stride - len(held)))
        start, previous = following, start


class TemporalBlender:
    """Blends windows in time as they come, and hands out frames that no later window changes.

    Between windows it holds only the frames that the next window shares.

    Args:
        windows: the settings that :func:`stream_windows` was given.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._sums: deque[Tensor] = deque()
        self._weights: deque[float] = deque()

    def push(self, window: TimeWindow[Item], picture: Tensor) -> None:
        """Take the result of the next window, ``[frames, channels, height, width]``.

        All frames that the window before finished must have been popped.
        """
        weights = window_weights(
            window.start,
            window.previous_start,
            window.next_start,
            len(picture),
            self._windows.overlap_frames,
            self._windows.feather,
        ).tolist()
        held = len(self._sums)
        for index, (frame, weight) in enumerate(zip(picture.float(), weights, strict=True)):
            if index < held:
                # An earlier window may have rested on another device.
                self._sums[index] = self._sums[index].to(frame.device) + weight * frame
                self._weights[index] += weight
            elif index < window.finished:
                self._sums.append(frame)  # no other window covers it: exactly as it is
                self._weights.append(1.0)
            else:
                self._sums.append(weight * frame)
                self._weights.append(weight)

    def pop_finished(self, window: TimeWindow[Item]) -> Iterator[Tensor]:
        """Frames in order, fp32 ``[channels, height, width]``, up to where the next window starts.

        Args:
            window: the one pushed last. Consume the iterator before pushing another.
        """
        keep = len(window.items) - window.finished
        while len(self._sums) > keep:
            total, weight = self._sums.popleft(), self._weights.popleft()
            yield total if weight == 1.0 else total / weight


def pad_clip(clip: Tensor, frames_multiple: int, pixels_multiple: int) -> Tensor:
    """Pad a clip to sizes the model takes, by repeating its last frame, row and column.

    Args:
        clip: floating point ``[frames, channels, height, width]``.
        frames_multiple: frames become the next ``frames_multiple * n + 1``; 1 pads none.
        pixels_multiple: height and width become the next multiple.

    Returns:
        ``clip`` itself if nothing is missing.
    """
    frames, _, height, width = clip.shape
    late, below, right = (
        (1 - frames) % frames_multiple,
        -height % pixels_multiple,
        -width % pixels_multiple,
    )
    if below or right:
        clip = F.pad(clip, (0, right, 0, below), mode="replicate")
    if late:
        clip = torch.cat([clip, clip[-1:].expand(late, -1, -1, -1)])
    return clip


def crop_clip(clip: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`pad_clip`: a view of the first frames, rows and columns, as many as ``like`` has.

    Args:
        clip: ``[frames, channels, height, width]``.
        like: the clip before it was padded; its channels do not matter.
    """
    frames, _, height, width = like.shape
    return clip[:frames, :, :height, :width]
