"""A moving camera over a still photo: pan, zoom, rotation, perspective, and a real shutter.

Everything moves by fractions of a pixel and accelerates a little. The shutter is open for a part
of the frame's time, during which the picture smears (exposure blur), and reads row after row, so
that lower rows see a later camera (rolling shutter).
"""

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.training.draws import Draw

SPEED = 3.0  # pixels a frame along each axis, at the most
DRIFT = 0.15  # of that speed may be gained or lost with each frame
ZOOM = (0.75, 1.0)  # how much of the view is seen: never more of it than there are pixels for
ZOOM_SPEED = 0.008  # relative change a frame
TURN = 0.06  # radians, standing
TURN_SPEED = 0.01  # radians a frame
TILT = 0.04  # change of size from one edge to the other by perspective
TILT_SPEED = 0.006
EXPOSURE = (0.0, 0.6)  # of a frame's time
ROLLING = 0.5  # of a frame's time between the first and the last row, at the most
STILL = 0.1  # share of the clips whose camera stands
BLURRED = 0.3  # share of the clips with exposure blur
ROLLED = 0.3  # share of the clips with a rolling shutter
SUBFRAMES = 4  # moments whose mean is an exposed frame


@dataclass(frozen=True)
class Path:
    """Where the camera is at time ``t``: ``value + speed t`` for each number.

    Attributes:
        centre: of the view, ``(x, y)`` in pixels of the photo as large as it is shown.
        velocity, acceleration: of the centre, pixels a frame (a frame).
        zoom, zoom_speed: these pixels to a clip pixel, and its relative change a frame.
        turn, turn_speed: radians.
        tilt, tilt_speed: perspective along ``(x, y)``.
        exposure: part of a frame's time that the shutter is open.
        rolling: part of a frame's time between the first and the last row.
    """

    centre: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    acceleration: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    zoom_speed: float = 0.0
    turn: float = 0.0
    turn_speed: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    tilt_speed: tuple[float, float] = (0.0, 0.0)
    exposure: float = 0.0
    rolling: float = 0.0


def draw_path(
    draw: Draw, photo: tuple[int, int], frames: int, size: tuple[int, int], detail: float = 1.0
) -> Path:
    """A camera whose view stays inside the photo where it can.

    Args:
        draw: decides.
        photo: its height and width as it is shown.
        frames, size: of the clip; height and width.
        detail: stored pixels to a shown one; with 1 there is nothing to zoom into.
    """

    def both(limit: float) -> tuple[float, float]:
        return draw.uniform(-limit, limit), draw.uniform(-limit, limit)

    moving = not draw.chance(STILL)
    speed = SPEED if moving else 0.0
    velocity, acceleration = both(speed), both(DRIFT * speed)
    centre = []
    for length, seen in zip(photo[::-1], size[::-1], strict=True):
        reach = seen / 2 * 1.15 + frames * SPEED / 2  # turned and moved, seen from the middle
        slack = max(length / 2 - reach, 0)
        centre.append(length / 2 + draw.uniform(-slack, slack))
    middle = (frames - 1) / 2
    return Path(
        centre=(centre[0] - velocity[0] * middle, centre[1] - velocity[1] * middle),
        velocity=velocity,
        acceleration=acceleration,
        zoom=draw.uniform(max(ZOOM[0], 1 / detail), ZOOM[1]),
        zoom_speed=draw.uniform(-ZOOM_SPEED, ZOOM_SPEED) * moving,
        turn=draw.uniform(-TURN, TURN),
        turn_speed=draw.uniform(-TURN_SPEED, TURN_SPEED) * moving,
        tilt=both(TILT),
        tilt_speed=both(TILT_SPEED * moving),
        exposure=draw.uniform(*EXPOSURE) if moving and draw.chance(BLURRED) else 0.0,
        rolling=draw.uniform(0, ROLLING) if moving and draw.chance(ROLLED) else 0.0,
    )


def view(path: Path, times: Tensor, width: int, fine: int = 1) -> Tensor:
    """Photo pixels ``(x, y)``, as shown, that the pixels of a view see.

    Args:
        path: of the camera.
        times: of each row, in frames, ``[moments, height]``.
        width: of the view, pixels.
        fine: so many rows and columns within each pixel are seen apart.

    Returns:
        ``[moments, height * fine, width * fine, 2]``.
    """
    t = times.repeat_interleave(fine, dim=1)[:, :, None]
    columns, rows = width * fine, times.shape[1] * fine
    x = ((torch.arange(columns, dtype=times.dtype) - (columns - 1) / 2) / fine)[None, None, :]
    y = ((torch.arange(rows, dtype=times.dtype) - (rows - 1) / 2) / fine)[None, :, None]
    turn = path.turn + path.turn_speed * t
    cosine, sine = turn.cos(), turn.sin()
    across, down = x * cosine - y * sine, x * sine + y * cosine
    tilt_x, tilt_y = (
        (value + speed * t) / max(times.shape[1], width)
        for value, speed in zip(path.tilt, path.tilt_speed, strict=True)
    )
    scale = path.zoom * (1 + path.zoom_speed * t) / (1 + tilt_x * across + tilt_y * down)
    seen = []
    for offset, centre, speed, gain in zip(
        (across, down), path.centre, path.velocity, path.acceleration, strict=True
    ):
        seen.append(offset * scale + centre + speed * t + 0.5 * gain * t.square())
    return torch.stack(torch.broadcast_tensors(*seen), dim=-1)


def film(
    photo: Tensor, path: Path, frames: int, size: tuple[int, int], detail: float = 1.0
) -> Tensor:
    """The clip that a camera takes of a photo.

    Args:
        photo: uint8 ``[3, height, width]``; beyond its edges it is mirrored.
        path: of the camera.
        frames: of the clip.
        size: its height and width.
        detail: pixels of ``photo`` to one as it is shown. Above 1, every pixel of the clip is the
            mean of ``ceil(detail)`` by as many places: as sharp as pixels can be, and not aliased.

    Returns:
        Float ``[3, frames, *size]`` in [0, 1].
    """
    moments, fine = SUBFRAMES if path.exposure else 1, ceil(detail)
    start = torch.arange(frames)[:, None] + path.exposure * torch.arange(moments) / moments
    rows = path.rolling * torch.arange(size[0]) / size[0]
    times = start.flatten()[:, None] + rows
    seen = (view(path, times, size[1], fine) + 0.5) * detail - 0.5
    height, width = photo.shape[-2:]
    limits, needed = torch.tensor([width, height]), torch.tensor(size[::-1])
    low = (seen.amin((0, 1, 2)).floor().long() - 3).clamp(min=0).minimum(limits - needed)
    low = low.clamp(min=0)
    high = (seen.amax((0, 1, 2)).ceil().long() + 4).maximum(low + needed).minimum(limits)
    part = photo[:, low[1] : high[1], low[0] : high[0]].float().div(255)
    grid = (2 * (seen - low) + 1) / (high - low) - 1  # as grid_sample counts
    x = F.grid_sample(
        part.expand(len(grid), -1, -1, -1),
        grid,
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    if fine > 1:
        x = F.avg_pool2d(x, fine)
    x = x.unflatten(0, (frames, moments)).mean(1)
    return x.clamp(0, 1).transpose(0, 1)
