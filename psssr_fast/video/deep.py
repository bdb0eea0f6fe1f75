"""Between pictures of more than 8 bits and 16-bit RGB, in which white is 65535.

swscale does this too, but to another white (65280 or 65472) for every kind of source, and cuts low
bits off. Here it only moves chroma to the grid of luma and back, in 16 bits; the colour matrix and
all rounding are ours: within half a step of exact arithmetic.
"""

import re
from dataclasses import dataclass

import av
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from psssr_fast.h273 import RED_AND_BLUE

WHITE = 65535
COMMON = "yuv444p16le"  # what swscale brings every Y'CbCr to, and takes every Y'CbCr from
FULL = 2
_STRIPE = 16  # rows
_PLANAR = re.compile(r"yuva?(420|422|444)p(?:9|10|12|14|16)le")
ACCURATE = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)

Words = NDArray[np.uint16]
Values = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Coding:
    """What the levels of Y'CbCr mean.

    Attributes:
        matrix: H.273's number.
        full_range: black to white is the whole range of numbers.
        bits: of the planes before they were widened to 16, or after they will be narrowed.
    """

    matrix: int
    full_range: bool
    bits: int

    def levels(self) -> tuple[float, float, float]:
        """Black, the distance to white, and the span of chroma, in levels of 16 bits, as
        :func:`from_depth` makes them."""
        if self.full_range:
            return 0.0, float(WHITE), float(((1 << self.bits) - 1) << (16 - self.bits))
        return 16.0 * 256, 219.0 * 256, 224.0 * 256


def to_8_bits(values: Values) -> NDArray[np.uint8]:
    """16-bit values to the nearest of 8 bits: 257 steps to one. 8-bit values as they are."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_16_bits(values: Values) -> Words:
    """8-bit values to 16: 255 becomes 65535. 16-bit values as they are."""
    if values.dtype == np.uint16:
        return values.astype(np.uint16, copy=False)
    return values.astype(np.uint16) * np.uint16(257)


def component_bits(pixel_format: str) -> int:
    """Bits of the widest component of a pixel format."""
    return max(component.bits for component in VideoFormat(pixel_format).components)


def plane_values(plane: av.video.plane.VideoPlane, bits: int = 16) -> Values:
    """``[height, width]`` values of a plane, as stored: uint8, or of more than 8 bits uint16."""
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    rows: Values = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
    return rows[:, : plane.width]


def planes_of(picture: av.VideoFrame) -> list[Words]:
    """The planes of a picture in a little-endian planar format of 9 to 16 bits, as stored."""
    return [plane_values(plane).astype(np.uint16, copy=False) for plane in picture.planes]


def fill_plane(plane: av.video.plane.VideoPlane, values: NDArray[np.generic]) -> None:
    """Overwrite a plane with ``[height, width]`` values of its own width."""
    rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
    rows[:, : plane.width] = values
    plane.update(rows.tobytes())


def widen(values: Words, bits: int) -> Words:
    """Codes of ``bits`` bits, black 0 and white all ones, to 16 bits; the nearest."""
    peak = (1 << bits) - 1
    if bits == 16:
        return values
    return ((values.astype(np.uint32) * WHITE + peak // 2) // peak).astype(np.uint16)


def narrow(values: Words, bits: int) -> Words:
    """The inverse of :func:`widen`, the nearest."""
    peak = (1 << bits) - 1
    if bits == 16:
        return values
    return ((values.astype(np.uint32) * peak + WHITE // 2) // WHITE).astype(np.uint16)


def rgb_to_words(picture: av.VideoFrame, reformatter: VideoReformatter) -> Words:
    """``[height, width, 3]`` 16-bit RGB of an RGB picture; alpha is left out."""
    name = picture.format.name
    if name.startswith(("rgb48", "rgba64")):
        return picture.to_ndarray()[..., :3].astype(np.uint16)
    bits = component_bits(name)
    if name.startswith("gbr") and 8 < bits <= 16:
        if name.endswith("be"):
            picture = reformatter.reformat(picture, format=f"{name[:-2]}le")
        green, blue, red = planes_of(picture)[:3]
        return widen(np.stack([red, green, blue], axis=-1), bits)
    rgb = reformatter.reformat(picture, format="rgb48le").to_ndarray()
    return np.asarray(rgb, np.uint16)


def gray_to_words(picture: av.VideoFrame, full_range: bool, reformatter: VideoReformatter) -> Words:
    """``[height, width, 3]`` 16-bit RGB of a gray picture of 9 to 16 bits; alpha is left out."""
    name = picture.format.name
    if name.startswith("ya"):
        with_alpha = reformatter.reformat(picture, format="ya16le")
        (plane,) = with_alpha.planes
        levels = np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)
        gray, bits = levels[:, : 2 * picture.width : 2], 16
    else:
        if name.endswith("be"):
            picture = reformatter.reformat(picture, format=f"{name[:-2]}le")
        (gray,), bits = planes_of(picture), component_bits(name)
    if full_range:
        words = widen(gray, bits)
    else:
        scale = 2.0 ** (bits - 8)
        shades = (gray.astype(np.float32) - 16 * scale) * (WHITE / (219 * scale))
        words = np.rint(shades).clip(0, WHITE).astype(np.uint16)
    return np.repeat(words[..., None], 3, axis=2)


def yuv_to_words(common: av.VideoFrame, coding: Coding) -> Words:
    """``[height, width, 3]`` 16-bit RGB of a picture in :data:`COMMON`."""
    black, luma_span, chroma_span = coding.levels()
    red, blue = RED_AND_BLUE[coding.matrix]
    green = 1 - red - blue
    luma, chroma = np.float32(WHITE / luma_span), np.float32(WHITE / chroma_span)
    of_u = (None, -2 * (1 - blue) * blue / green, 2 * (1 - blue))
    of_v = (2 * (1 - red), -2 * (1 - red) * red / green, None)
    planes = planes_of(common)
    words = np.empty((*planes[0].shape, 3), np.uint16)
    for rows in _stripes(common.height):
        y, u, v = (plane[rows].astype(np.float32) for plane in planes)
        gray = (y - np.float32(black)) * luma
        u, v = (u - 32768) * chroma, (v - 32768) * chroma
        for channel in range(3):
            levels = gray.copy()
            for weight, values in ((of_u[channel], u), (of_v[channel], v)):
                if weight is not None:
                    levels += np.float32(weight) * values
            words[rows, :, channel] = np.rint(levels, out=levels).clip(0, WHITE, out=levels)
    return words


def words_to_yuv(pixels: Words, coding: Coding) -> av.VideoFrame:
    """A picture in :data:`COMMON` of ``[height, width, 3]`` 16-bit RGB."""
    black, luma_span, chroma_span = coding.levels()
    red, blue = RED_AND_BLUE[coding.matrix]
    # gray in the first column, blue and red less gray in the others; then their levels
    weights = np.array([[red, 1 - red - blue, blue]] * 3, np.float64)
    weights[1], weights[2] = [0, 0, 1] - weights[1], [1, 0, 0] - weights[2]
    weights *= [
        [luma_span / WHITE],
        [chroma_span / WHITE / (2 * (1 - blue))],
        [chroma_span / WHITE / (2 * (1 - red))],
    ]
    zero = np.array([black, 32768, 32768], np.float32)
    height, width = pixels.shape[:2]
    picture = av.VideoFrame(width, height, COMMON)
    stored = np.zeros((3, height, picture.planes[0].line_size // 2), np.uint16)
    for rows in _stripes(height):
        levels = pixels[rows].reshape(-1, 3).astype(np.float32) @ weights.T.astype(np.float32)
        levels += zero
        np.rint(levels, out=levels).clip(0, WHITE, out=levels)
        stored[:, rows, :width] = levels.T.reshape(3, -1, width)
    for plane, values in zip(picture.planes, stored, strict=True):
        plane.update(values.tobytes())
    return picture


def planar_twin(pixel_format: str) -> str | None:
    """The 16-bit planar format with the same grid of chroma, for planar Y'CbCr of 9 to 16 bits."""
    found = _PLANAR.fullmatch(pixel_format)
    return f"yuv{found[1]}p16le" if found else None


def planar_like(pixel_format: str) -> str:
    """The planar little-endian format that holds what a Y'CbCr format of 9 to 16 bits holds."""
    if planar_twin(pixel_format):
        return pixel_format
    layout, bits = VideoFormat(pixel_format, 2, 2), component_bits(pixel_format)
    grids = {(1, 1): "420", (1, 2): "422"}
    grid = grids.get((layout.chroma_width(), layout.chroma_height()), "444")
    return f"yuv{grid}p{bits}le"


def from_depth(
    picture: av.VideoFrame, full_range: bool, reformatter: VideoReformatter
) -> av.VideoFrame:
    """A picture with a :func:`planar_twin`, in that format. Alpha is left out.

    Full-range luma is stretched, so that white is white; all else gets zeros below, which keeps
    what its levels mean. (swscale stretches or not, depending on whether chroma is resampled.)
    """
    name = picture.format.name
    bits, twin = component_bits(name), planar_twin(name)
    if bits == 16:
        return picture
    result = reformatter.reformat(picture, format=twin)  # for what it knows of chroma's position
    for number, (source, target) in enumerate(zip(planes_of(picture), result.planes, strict=False)):
        stretched = full_range and number == 0
        fill_plane(target, widen(source, bits) if stretched else source << (16 - bits))
    return result


def to_depth(twin: av.VideoFrame, pixel_format: str, full_range: bool) -> av.VideoFrame:
    """A picture in the :func:`planar_twin` of a format, in that format: levels to the nearest.

    swscale would cut the low bits off, half a level on average. Alpha is not filled in.
    """
    bits = component_bits(pixel_format)
    shift, peak = 16 - bits, (1 << bits) - 1
    result = av.VideoFrame(twin.width, twin.height, pixel_format)
    for number, (source, target) in enumerate(zip(planes_of(twin), result.planes, strict=False)):
        if full_range and number == 0:
            fill_plane(target, narrow(source, bits))
            continue
        levels = source >> shift
        if shift:  # the highest bit that is cut off decides, and nothing can overflow
            levels += (source >> (shift - 1)) & 1
        fill_plane(target, np.minimum(levels, peak))
    return result


def _stripes(height: int) -> list[slice]:
    """Rows a few at a time: what is computed with them stays in the processor's cache."""
    return [slice(row, min(row + _STRIPE, height)) for row in range(0, height, _STRIPE)]
