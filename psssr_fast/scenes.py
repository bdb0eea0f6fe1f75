"""Where scenes begin: cuts found in a stream of frames, with a small, stated look-ahead.

The built-in detector compares frames as pictures of at most 36 x 64 brightnesses, all in whole
numbers, so that the same frames give the same cuts on every machine. Frame ``n`` begins a scene if

* each of ``n - 4 .. n - 1`` differs from each of ``n .. n + 3`` by at least ``threshold``; so
  neither a flash of up to three frames nor its end is a cut, and fades and dissolves, where
  neighbours are alike, are none either;
* the least of these differences is twice what is usual between neighbours just before and
  just after; so neither a fast pan nor its beginning is a cut.

The decision reads ``n - HISTORY .. n + LOOKAHEAD`` and nothing else: a run that starts over gives
the same cuts.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor

from psssr_fast.config import SceneCuts
from psssr_fast.errors import UsageError

LOOKAHEAD = 3  # frames after the one that is judged
HISTORY = 9  # frames before it

ROWS, COLUMNS = 36, 64  # of the small picture
BINS = 32  # of the histogram of its brightnesses
HISTOGRAM_SHARE = 0.25  # of a wholly different histogram, beside a wholly different picture: 1
PROMINENCE = 2.0  # times the change that is usual there
USUAL = HISTORY - 1  # changes before a frame that say what is usual

# Even steps of brightness in the dark, where a cut changes little.
_BRIGHTNESS = np.rint(255 * np.sqrt(np.arange(256) / 255)).astype(np.int32)

FrameT = TypeVar("FrameT", np.ndarray, Tensor)


class CutFinder(Protocol):
    """Judges frames in order, some frames late.

    Attributes:
        lookahead: frames after a frame that must be known before it is judged.
    """

    lookahead: int

    def push(self, frame: np.ndarray | Tensor) -> list[bool]:
        """Take the next frame; whether the frames that can be judged now begin scenes."""
        ...

    def finish(self) -> list[bool]:
        """The same for the frames that are left when no more come."""
        ...


def mark_scenes(frames: Iterable[FrameT], scenes: SceneCuts) -> Iterator[tuple[FrameT, bool]]:
    """Each frame with whether it begins a new scene; the first never does.

    A frame leaves when :func:`lookahead` later ones were read, or the stream ended.

    Args:
        frames: uint8 or uint16 ``[height, width, 3]`` RGB, or float ``[3, height, width]`` in
            [-1, 1].
        scenes: which detector.

    Raises:
        UsageError: the detector is not installed.
    """
    return _mark(frames, _make_finder(scenes))


def find_cuts(frames: Iterable[FrameT], scenes: SceneCuts) -> tuple[int, ...]:
    """The indices, from 0, of all frames that begin a new scene.

    Args:
        frames, scenes: as for :func:`mark_scenes`.

    Raises:
        UsageError: the detector is not installed.
    """
    marked = mark_scenes(frames, scenes)
    return tuple(index for index, (_, begins) in enumerate(marked) if begins)


def lookahead(scenes: SceneCuts) -> int:
    """How many frames a detector looks ahead."""
    return {"off": 0, "auto": LOOKAHEAD, "scenedetect": SceneDetect.lookahead}[scenes.detector]


def _make_finder(scenes: SceneCuts) -> CutFinder | None:
    if scenes.detector == "off":
        return None
    return (LumaCuts if scenes.detector == "auto" else SceneDetect)(scenes.threshold)


def _mark(frames: Iterable[FrameT], finder: CutFinder | None) -> Iterator[tuple[FrameT, bool]]:
    if finder is None:
        yield from ((frame, False) for frame in frames)
        return
    waiting: deque[FrameT] = deque()
    for frame in frames:
        waiting.append(frame)
        for begins in finder.push(frame):
            yield waiting.popleft(), begins
    for begins in finder.finish():
        yield waiting.popleft(), begins


class LumaCuts:
    """The built-in detector; see the top of this module.

    Args:
        threshold: see :class:`psssr_fast.config.SceneCuts`.
    """

    lookahead = LOOKAHEAD

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._looks: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=2 * LOOKAHEAD + 2)
        self._changes: deque[float] = deque(maxlen=USUAL + 1 + LOOKAHEAD)  # to each frame's own
        self._unjudged = 0

    def push(self, frame: np.ndarray | Tensor) -> list[bool]:
        """See :class:`CutFinder`."""
        picture = small_picture(frame)
        look = picture, _histogram(picture)
        if self._looks:
            self._changes.append(difference(self._looks[-1], look))
        self._looks.append(look)
        self._unjudged += 1
        return [self._judge()] if self._unjudged > LOOKAHEAD else []

    def finish(self) -> list[bool]:
        """See :class:`CutFinder`."""
        return [self._judge() for _ in range(self._unjudged)]

    def _judge(self) -> bool:
        """Whether the first unjudged frame begins a scene."""
        after = self._unjudged - 1
        here = len(self._changes) - 1 - after
        self._unjudged -= 1
        if here < 0 or self._changes[here] < self._threshold:
            return False
        usual = [
            sorted(around)[len(around) // 2]
            for around in (
                list(islice(self._changes, max(0, here - USUAL), here)),
                list(islice(self._changes, here + 1, None)),
            )
            if around
        ]
        if not usual:  # two frames: nothing tells a cut from motion
            return False
        looks = list(self._looks)
        split = len(looks) - 1 - after
        least = min(
            difference(old, new)
            for old in looks[max(0, split - LOOKAHEAD - 1) : split]
            for new in looks[split:]
        )
        return least >= max(self._threshold, PROMINENCE * max(usual))


class SceneDetect:
    """PySceneDetect's adaptive detector (package ``scenedetect-headless``).

    It finds no cut at the second frame, nor at the last two.

    Args:
        threshold: see :class:`psssr_fast.config.SceneCuts`.

    Raises:
        UsageError: it is not installed.
    """

    lookahead = 2

    def __init__(self, threshold: float) -> None:
        try:
            from scenedetect import FrameTimecode
            from scenedetect.detectors import AdaptiveDetector
        except ImportError as error:
            raise UsageError(
                f"the scene detector 'scenedetect' cannot be loaded ({error}); install it with "
                "pip install 'psssr_fast[scenes]', or use 'auto'"
            ) from error
        # Any minimum length but one frame would make a decision depend on all earlier ones.
        self._detector: Any = AdaptiveDetector(
            min_scene_len=1, window_width=self.lookahead, min_content_val=255 * threshold
        )
        self._timecode: Any = FrameTimecode
        self._cuts: set[int] = set()
        self._read = self._judged = 0

    def push(self, frame: np.ndarray | Tensor) -> list[bool]:
        """See :class:`CutFinder`."""
        bgr = np.ascontiguousarray(_few_pixels(frame, 4)[..., ::-1])
        found = self._detector.process_frame(self._timecode(self._read, fps=25.0), bgr)
        self._cuts.update(cut.frame_num for cut in found)
        self._read += 1
        return [self._judge()] if self._read - self._judged > self.lookahead else []

    def finish(self) -> list[bool]:
        """See :class:`CutFinder`."""
        return [self._judge() for _ in range(self._read - self._judged)]

    def _judge(self) -> bool:
        index, self._judged = self._judged, self._judged + 1
        begins = index in self._cuts
        self._cuts.discard(index)
        return begins


def small_picture(frame: np.ndarray | Tensor) -> np.ndarray:
    """The brightness of a frame, 0 to 255 in even steps to the eye, in at most 36 x 64 cells.

    Args:
        frame: uint8 or uint16 ``[height, width, 3]`` RGB, or float ``[3, height, width]`` in
            [-1, 1]; a frame gives the same in all its forms.

    Returns:
        int32 ``[rows, columns]``.
    """
    pixels = _few_pixels(frame, 2).astype(np.int32)
    luma = (77 * pixels[..., 0] + 150 * pixels[..., 1] + 29 * pixels[..., 2] + 128) >> 8
    for axis, most in enumerate((ROWS, COLUMNS)):
        length = luma.shape[axis]
        edges = np.arange(min(most, length)) * length // min(most, length)
        sizes = np.diff(edges, append=length)
        luma = np.add.reduceat(luma, edges, axis) // (sizes[:, None] if axis == 0 else sizes)
    return _BRIGHTNESS[luma]


def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """How far two frames differ, 0 to 1.25: in brightness cell by cell, and in their histograms.

    Args:
        a, b: small pictures of one size, with their histograms.
    """
    cells = a[0].size
    moved = int(np.abs(a[0] - b[0]).sum(dtype=np.int64)) / (255 * cells)
    other = int(np.abs(a[1] - b[1]).sum(dtype=np.int64)) / (8 * cells)  # each counts four times
    return moved + HISTOGRAM_SHARE * other


def _histogram(picture: np.ndarray) -> np.ndarray:
    """Counts of brightnesses, each shared with the neighbouring bins, so that noise moves few."""
    counts = np.pad(np.bincount(picture.ravel() * BINS // 256, minlength=BINS), 1)
    return counts[:-2] + 2 * counts[1:-1] + counts[2:]


def _few_pixels(frame: np.ndarray | Tensor, finer: int) -> np.ndarray:
    """A frame as uint8 RGB, thinned out to ``finer`` to twice that many pixels a cell and axis."""
    height, width = frame.shape[:2] if isinstance(frame, np.ndarray) else frame.shape[1:]
    step = max(1, min(height // (finer * ROWS), width // (finer * COLUMNS)))
    if isinstance(frame, np.ndarray):
        few = frame[::step, ::step, :3]
        if few.dtype == np.uint8:
            return few
        return ((few.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    few = frame[:, ::step, ::step].detach().float().cpu().numpy().transpose(1, 2, 0)
    return np.rint((few + 1) * 127.5).clip(0, 255).astype(np.uint8)
