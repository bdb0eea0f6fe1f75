"""Two versions of a video, measured against each other: crops, temporal profile, PSNR.

Everything is read frame by frame; what is kept is one pair of frames and one row of some others.
"""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from psssr_fast.errors import InputError, UsageError
from psssr_fast.ops.pixel_format import pack_frames, unpack_frames
from psssr_fast.resize import resize_frames
from psssr_fast.video import VideoInfo, open_reader, probe
from psssr_fast.video.deep import to_8_bits

Pixels = NDArray[np.uint8]

AUTOMATIC_CROPS = 3
MAX_CROPS = 12
PROFILE_FRAMES = 200  # at most: what of a long video is visible in one picture
CROP_SHOWN = 291  # pixels that an automatic crop's edge is magnified to, about
SHAPE_TOLERANCE = 0.02  # relative difference of the two aspect ratios that is still one picture
_BT601_LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 255  # 16 to 235; plus 16


@dataclass(frozen=True)
class Crop:
    """A rectangle of the larger picture, in pixels."""

    width: int
    height: int
    x: int
    y: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``WIDTHxHEIGHT+X+Y``.

        Raises:
            UsageError: it is not of that form, or empty.
        """
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})\+(\d{1,6})\+(\d{1,6})", text)
        if match is None or "0" in (match[1], match[2]):
            raise UsageError(f"crop must be WIDTHxHEIGHT+X+Y, as 96x96+640+200; got {text!r}")
        return cls(*map(int, match.groups()))

    def of(self, picture: Pixels) -> Pixels:
        """The part of a picture ``[height, width, 3]``."""
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]

    def __str__(self) -> str:
        return f"{self.width}x{self.height}+{self.x}+{self.y}"


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two videos.

    Attributes:
        name: what the picture calls it.
        path: of the video.
        width, height: as stored, pixels.
        enlarged: whether it was enlarged to the size of the other.
        frame: the compared frame at the common size, uint8 ``[height, width, 3]``.
        profile: one row of each frame, uint8 ``[frames, width, 3]``.
    """

    name: str
    path: Path
    width: int
    height: int
    enlarged: bool
    frame: Pixels
    profile: Pixels


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare_videos` found.

    Attributes:
        before, after: the two videos.
        frame: number of the compared frame, from 0.
        crops: where to look closely, most different first.
        row: the row of pixels that the temporal profile follows.
        column: the pixel of that row to centre the profile on.
        first_profile_frame: number of the profile's first frame.
        frames: how many pairs of frames the PSNR is over; 0 if the sizes differ.
        psnr_luma, psnr_rgb: decibels over all frames; infinite for equal videos, ``None`` if the
            sizes differ. Luma is BT.601's, 16 to 235, as in the super-resolution literature.
        warnings: one line each.
    """

    before: Side
    after: Side
    frame: int
    crops: tuple[Crop, ...]
    row: int
    column: int
    first_profile_frame: int
    frames: int
    psnr_luma: float | None
    psnr_rgb: float | None
    warnings: tuple[str, ...]


def compare_videos(
    before: str | Path,
    after: str | Path,
    *,
    frame: int | None = None,
    crops: tuple[Crop, ...] = (),
    names: tuple[str, str] | None = None,
) -> Comparison:
    """Compare two videos or folders of PNG frames, frame by frame.

    The smaller one is enlarged with the bicubic filter that PS-SR itself starts from.

    Args:
        before, after: the videos.
        frame: which frame to look at, from 0; default the middle one.
        crops: where to look closely, in pixels of the larger video; by default the places where
            fine detail differs most.
        names: what to call them; default their file names.

    Raises:
        InputError: one cannot be read, or their pictures have different shapes.
        UsageError: there is no such frame, or a crop lies outside.
    """
    if len(crops) > MAX_CROPS:
        raise UsageError(f"at most {MAX_CROPS} crops fit a picture; got {len(crops)}")
    infos = probe(before), probe(after)
    size = _common_size(infos)
    for crop in crops:
        if crop.x + crop.width > size[1] or crop.y + crop.height > size[0]:
            raise UsageError(f"crop {crop} lies outside of the {size[1]}x{size[0]} picture")
    index, pictures = _chosen_pair(infos, frame, size)
    crops = crops or choose_crops(*pictures)
    row, column = crops[0].y + crops[0].height // 2, crops[0].x + crops[0].width // 2
    start = max(0, index - PROFILE_FRAMES // 2)
    pass_over = _pass_over(infos, size, row, range(start, start + PROFILE_FRAMES))
    titles = names or (infos[0].path.name, infos[1].path.name)
    sides = [
        _side(*facts) for facts in zip(titles, infos, pictures, pass_over.profiles, strict=True)
    ]
    psnr_luma, psnr_rgb = pass_over.psnr()
    return Comparison(
        before=sides[0],
        after=sides[1],
        frame=index,
        crops=crops,
        row=row,
        column=column,
        first_profile_frame=start,
        frames=pass_over.frames,
        psnr_luma=psnr_luma,
        psnr_rgb=psnr_rgb,
        warnings=_notes(infos),
    )


def _side(name: str, info: VideoInfo, frame: Pixels, profile: Pixels) -> Side:
    enlarged = (info.height, info.width) != frame.shape[:2]
    return Side(name, info.path, info.width, info.height, enlarged, frame, profile)


def choose_crops(before: Pixels, after: Pixels, count: int = AUTOMATIC_CROPS) -> tuple[Crop, ...]:
    """The squares where the fine detail of two pictures differs most.

    Detail is luma minus its local mean; squares lie on a grid, do not overlap, and equally good
    ones are taken from the top left, so that the choice is always the same.

    Args:
        before, after: uint8 ``[height, width, 3]``.
        count: how many; fewer if the picture is too small for them.
    """
    height, width = before.shape[:2]
    edge = max(1, min(crop_edge(height), height, width))
    step = max(1, edge // 4)
    difference = _fine_detail(after) - _fine_detail(before)
    energy = _box_sums(np.square(difference, dtype=np.float64), edge)[::step, ::step]
    chosen: list[Crop] = []
    while len(chosen) < count and np.isfinite(energy).any():
        y, x = divmod(int(np.argmax(np.nan_to_num(energy, nan=-1.0))), energy.shape[1])
        chosen.append(Crop(edge, edge, x * step, y * step))
        reach = math.ceil(1.5 * edge / step)  # half a square stays free between two
        energy[max(0, y - reach + 1) : y + reach, max(0, x - reach + 1) : x + reach] = np.nan
    return tuple(chosen)


def crop_edge(height: int) -> int:
    """Edge of an automatic crop, in pixels: what shows well magnified by a whole number."""
    return CROP_SHOWN // max(2, round(7 * CROP_SHOWN / height))


def _common_size(infos: tuple[VideoInfo, VideoInfo]) -> tuple[int, int]:
    a, b = infos
    ratio = (a.width / a.height) / (b.width / b.height)
    if abs(ratio - 1) > SHAPE_TOLERANCE:
        raise InputError(
            f"{a.path} is {a.width}x{a.height} and {b.path} is {b.width}x{b.height}: pictures of "
            "different shapes cannot be compared. Crop one of them first."
        )
    larger = max(infos, key=lambda info: info.width * info.height)
    return larger.height, larger.width


def _notes(infos: tuple[VideoInfo, VideoInfo]) -> tuple[str, ...]:
    a, b = infos
    notes = [f"{info.path}: {note}" for info in infos for note in info.warnings]
    if a.frames_exact and b.frames_exact and a.frames != b.frames:
        counts = f"{a.path} has {a.frames} frames and {b.path} {b.frames}"
        notes.append(f"{counts}: paired from the first on, the rest is left out")
    return tuple(notes)


def _pairs(infos: tuple[VideoInfo, VideoInfo]) -> Iterator[tuple[Pixels, Pixels]]:
    """Frames of both videos, in step, until one ends."""
    with ExitStack() as stack:
        a, b = (stack.enter_context(open_reader(info.path)) for info in infos)
        for frame_a, frame_b in zip(a, b, strict=False):
            yield to_8_bits(frame_a.pixels), to_8_bits(frame_b.pixels)


def _enlarge(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    picture = unpack_frames(torch.from_numpy(np.ascontiguousarray(pixels))[None])
    enlarged: Pixels = pack_frames(resize_frames(picture, *size))[0].numpy()
    return enlarged


def _chosen_pair(
    infos: tuple[VideoInfo, VideoInfo], frame: int | None, size: tuple[int, int]
) -> tuple[int, tuple[Pixels, Pixels]]:
    known = [info.frames for info in infos if info.frames is not None]
    wanted = frame if frame is not None else (min(known) if known else 0) // 2
    index, pair = -1, None
    for index, pair in enumerate(_pairs(infos)):  # noqa: B007  (the last one is what counts)
        if index == wanted:
            break
    if pair is None:
        raise InputError(f"{infos[0].path}, {infos[1].path}: no frames to compare")
    if frame is not None and index < frame:
        raise UsageError(f"no frame {frame}: the videos have {index + 1} frames, counted from 0")
    return index, (_enlarge(pair[0], size), _enlarge(pair[1], size))


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass over both videos: profiles ``[frames, width, 3]``, and sums of squared errors."""

    profiles: tuple[Pixels, Pixels]
    frames: int
    pixels: int  # of a frame
    luma_error: float
    rgb_error: float

    def psnr(self) -> tuple[float | None, float | None]:
        """Of luma and of RGB, in dB."""
        count = self.frames * self.pixels
        return _psnr(self.luma_error, count), _psnr(self.rgb_error, 3 * count)


def _psnr(error: float, count: int) -> float | None:
    if not count:
        return None
    return 10 * math.log10(255**2 * count / error) if error else math.inf


def _pass_over(
    infos: tuple[VideoInfo, VideoInfo], size: tuple[int, int], row: int, span: range
) -> _Pass:
    rows: tuple[list[Pixels], list[Pixels]] = ([], [])
    comparable = all((info.height, info.width) == size for info in infos)
    frames, luma_error, rgb_error = 0, 0.0, 0.0
    for index, pair in enumerate(_pairs(infos)):
        if index in span:
            for pixels, kept in zip(pair, rows, strict=True):
                kept.append(_enlarge(pixels, size)[row].copy())
        if comparable:
            frames += 1
            difference = pair[0].astype(np.float32) - pair[1]
            rgb_error += float(np.square(difference).sum(dtype=np.float64))
            luma_error += float(np.square(difference @ _BT601_LUMA).sum(dtype=np.float64))
        elif index >= span.stop:
            break
    return _Pass(
        profiles=(np.stack(rows[0]), np.stack(rows[1])),
        frames=frames,
        pixels=size[0] * size[1],
        luma_error=luma_error,
        rgb_error=rgb_error,
    )


def _fine_detail(picture: Pixels) -> NDArray[np.float32]:
    """Luma minus its mean over 9x9 pixels, ``[height, width]``."""
    luma = picture.astype(np.float32) @ _BT601_LUMA
    padded = np.pad(luma.astype(np.float64), 4, mode="reflect" if min(luma.shape) > 4 else "edge")
    mean = _box_sums(padded, 9) / 81
    return (luma - mean).astype(np.float32)


def _box_sums(values: NDArray[np.float64], edge: int) -> NDArray[np.float64]:
    """Sums over every square of ``edge`` x ``edge`` that lies inside."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    result: NDArray[np.float64] = (
        sums[edge:, edge:] - sums[:-edge, edge:] - sums[edge:, :-edge] + sums[:-edge, :-edge]
    )
    return result
