"""Turning stored pictures upright."""

import struct
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from psssr_fast.video.deep import Values
from psssr_fast.video.hdr import read_side_data


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a rectangle on a rectangle.

    Attributes:
        transpose: swap rows and columns, first.
        mirror_x, mirror_y: reverse the columns, the rows, afterwards.
    """

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation(self) -> int:
        """Degrees clockwise, leaving a mirroring aside."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, pixels: Values) -> Values:
        """``[height, width, ...]`` pixels as stored, to pixels as shown."""
        turned: NDArray[Any] = pixels.swapaxes(0, 1) if self.transpose else pixels
        if self.mirror_x:
            turned = turned[:, ::-1]
        if self.mirror_y:
            turned = turned[::-1]
        return np.ascontiguousarray(turned)


def orientation_of(picture: av.VideoFrame) -> Orientation | None:
    """The orientation in a picture's display matrix; ``None`` for one that is not a right angle.

    The matrix (ISO/IEC 14496-12, section 6.2.2) maps a stored point (x, y) to the shown point
    (a x + c y, b x + d y).
    """
    try:
        side_data = read_side_data(picture)
    except ValueError:
        return _turned(picture.rotation)
    if Type.DISPLAYMATRIX not in side_data:
        return Orientation()
    matrix = bytes(side_data[Type.DISPLAYMATRIX])
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if b == 0 and c == 0 and a != 0 and d != 0:
        return Orientation(mirror_x=a < 0, mirror_y=d < 0)
    if a == 0 and d == 0 and b != 0 and c != 0:
        return Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
    return None


def _turned(degrees: int) -> Orientation | None:
    """A turn counter-clockwise."""
    turns = {
        0: Orientation(),
        90: Orientation(transpose=True, mirror_y=True),
        180: Orientation(mirror_x=True, mirror_y=True),
        270: Orientation(transpose=True, mirror_x=True),
    }
    return turns.get(degrees % 360)
