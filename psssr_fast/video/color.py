"""YUV to RGB and back, with the matrix, range and chroma position that the file means.

Conversion to and from 8-bit RGB is swscale's, in its accurate modes: within one code value of exact
arithmetic. More bits go through :mod:`psssr_fast.video.deep`. Nothing is made linear or mapped to
another brightness: PQ and HLG stay the encoded signal that they are.
"""

from dataclasses import replace

import av
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from psssr_fast.errors import InputError
from psssr_fast.video.alpha import alpha_of, has_alpha, lay_alpha
from psssr_fast.video.deep import ACCURATE as _ACCURATE
from psssr_fast.video.deep import (
    COMMON,
    FULL,
    WHITE,
    Coding,
    Values,
    Words,
    component_bits,
    fill_plane,
    from_depth,
    gray_to_words,
    narrow,
    planar_like,
    planar_twin,
    planes_of,
    rgb_to_words,
    to_8_bits,
    to_depth,
    words_to_yuv,
    yuv_to_words,
)
from psssr_fast.video.info import UNKNOWN, ColorTags

GBR, BT709, BT601 = 0, 1, 6  # matrices; 6 is smpte170m, the same numbers as 5, bt470bg
LIMITED = 1

_MATRICES_OF_SWSCALE = frozenset({1, 4, 5, 6, 7, 9})
# PyAV asks for swscale's numbers where it converts to YUV: they agree with H.273 but for BT.601.
_SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
# Gray has no matrix; still-picture codecs store it in full range, these video codecs do not.
_LIMITED_GRAY_CODECS = frozenset({"h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg2video"})
# Decoders that say themselves where chroma samples lie (MJPEG and MPEG-1 between the luma
# samples, the others beside them). What the others decode is MPEG-style, but swscale takes
# silence for MJPEG-style, half a luma pixel to the right.
_CODECS_THAT_SAY_CHROMA_POSITION = frozenset(
    {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg"}
)
_FULL_RANGE_8_BIT = {
    f"{family}{sampling}p": f"yuv{sampling}p16le"
    for family in ("yuv", "yuvj")
    for sampling in ("420", "422", "444")
}


def is_rgb(pixel_format: str) -> bool:
    """Whether a pixel format holds RGB, directly or through a palette."""
    layout = VideoFormat(pixel_format)
    return layout.is_rgb or layout.has_palette


def tags_of(picture: av.VideoFrame) -> ColorTags:
    """The tags that a decoder gave a picture."""
    return ColorTags(
        picture.color_primaries, picture.color_trc, picture.colorspace, picture.color_range
    )


def resolve(tags: ColorTags, pixel_format: str, height: int, codec: str) -> ColorTags:
    """Fill in what a file does not say about its matrix and range.

    Matrix: BT.601 up to 576 stored lines, BT.709 above, as players do. Range: full for RGB, for
    the ``yuvj`` formats and for gray pictures, limited otherwise.

    Args:
        tags: the file's tags.
        pixel_format: FFmpeg's name of it.
        height: stored lines.
        codec: FFmpeg's name of the codec.

    Raises:
        InputError: the matrix is one that swscale cannot convert.
    """
    if is_rgb(pixel_format):
        return replace(tags, matrix=GBR, range=FULL)
    matrix = tags.matrix
    if matrix in (GBR, UNKNOWN, 3):  # 3 is reserved; YUV tagged as RGB is a mistake of its maker
        matrix = BT601 if height <= 576 else BT709
    if matrix not in _MATRICES_OF_SWSCALE:
        name = tags.names()["matrix"]
        raise InputError(
            f"colour matrix {name} ({matrix}) is not supported: need bt709, bt601, smpte240m, fcc "
            "or bt2020nc. Convert the video first, for example to bt709."
        )
    full = pixel_format.startswith("yuvj") or (
        pixel_format.startswith("gray") and codec not in _LIMITED_GRAY_CODECS
    )
    color_range = tags.range or (FULL if full else LIMITED)
    return replace(tags, matrix=matrix, range=color_range)


def output_tags(used: ColorTags, pixel_format: str) -> ColorTags:
    """The tags of an output: those of the input as decoded, always written out in full.

    An untagged SD file is decoded as BT.601; enlarged to HD and still untagged it would be shown
    as BT.709, with other colours. RGB sources become BT.709, limited range.
    """
    if is_rgb(pixel_format):
        return replace(used, matrix=GBR, range=FULL)
    if used.matrix == GBR:
        return replace(used, matrix=BT709, range=LIMITED)
    return used


class PixelConverter:
    """Converts frames of one video between their pixel format and RGB.

    Not safe for use by several threads at once.

    Args:
        tags: resolved tags: matrix and range must be known.
        codec: FFmpeg's name of the codec that decoded the frames; empty for frames of ours.
    """

    def __init__(self, tags: ColorTags, codec: str = "") -> None:
        self._tags = tags
        self._says_chroma_position = codec in _CODECS_THAT_SAY_CHROMA_POSITION
        self._reformatter = VideoReformatter()
        self._marker: av.filter.Graph | None = None
        self._marked_layout: tuple[str, int, int] | None = None

    def to_rgb(self, picture: av.VideoFrame) -> NDArray[np.uint8]:
        """``[height, width, 3]`` uint8 RGB of a decoded picture.

        16-bit RGB and gray are rounded to the nearest of 255 steps; YUV of more than 8 bits is
        brought to 8 by swscale.
        """
        if picture.format.name.startswith(("rgb48", "rgba64", "gray16")):
            return to_8_bits(self.to_words(picture))
        picture = self._marked(picture)
        rgb = self._reformatter.reformat(picture, format="rgb24", interpolation=_ACCURATE)
        return rgb.to_ndarray().astype(np.uint8, copy=False)

    def to_words(self, picture: av.VideoFrame) -> Words:
        """``[height, width, 3]`` uint16 RGB of a decoded picture; white is 65535."""
        name = picture.format.name
        bits = component_bits(name)
        if bits <= 8:
            return self.to_rgb(picture).astype(np.uint16) * 257
        if is_rgb(name):
            return rgb_to_words(picture, self._reformatter)
        if name.startswith(("gray", "ya")):
            return gray_to_words(picture, self._tags.range == FULL, self._reformatter)
        coding = Coding(self._tags.matrix, self._tags.range == FULL, bits)
        planar = self._reformatter.reformat(self._marked(picture), format=planar_like(name))
        twin = from_depth(planar, coding.full_range, self._reformatter)
        common = self._reformatter.reformat(twin, format=COMMON, interpolation=_ACCURATE)
        return yuv_to_words(common, coding)

    def alpha_of(self, picture: av.VideoFrame, deep: bool) -> Values | None:
        """As :func:`psssr_fast.video.alpha.alpha_of`."""
        return alpha_of(picture, deep, self._reformatter)

    def from_rgb(
        self, pixels: Values, pixel_format: str, alpha: Values | None = None
    ) -> av.VideoFrame:
        """A picture in ``pixel_format`` from ``[height, width, 3]`` uint8 or uint16 RGB.

        Subsampled chroma lies beside the luma samples (MPEG-style), which is what players assume.
        Alpha is left out where the format has none, and full where there is none.
        """
        if pixels.dtype == np.uint16 and component_bits(pixel_format) > 8:
            result = self._from_words(pixels.astype(np.uint16, copy=False), pixel_format)
        else:
            result = self._from_bytes(to_8_bits(pixels), pixel_format)
        if has_alpha(pixel_format):
            opaque = np.full(pixels.shape[:2], WHITE, np.uint16)
            result = lay_alpha(result, opaque if alpha is None else alpha, self._reformatter)
        result.colorspace, result.color_range = self._tags.matrix, self._tags.range
        result.color_primaries, result.color_trc = self._tags.primaries, self._tags.transfer
        return result

    def _from_words(self, pixels: Words, pixel_format: str) -> av.VideoFrame:
        if is_rgb(pixel_format):
            return self._rgb_from_words(pixels, pixel_format)
        coding = Coding(self._tags.matrix, self._tags.range == FULL, component_bits(pixel_format))
        common = words_to_yuv(pixels, coding)
        common.colorspace, common.color_range = self._tags.matrix, self._tags.range
        marked, twin = self._mark_chroma_left(common), planar_twin(pixel_format)
        result = self._reformatter.reformat(
            marked, format=twin or pixel_format, interpolation=_ACCURATE
        )
        return to_depth(result, pixel_format, coding.full_range) if twin else result

    def _rgb_from_words(self, pixels: Words, pixel_format: str) -> av.VideoFrame:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le")
        picture.colorspace, picture.color_range = GBR, FULL
        result = self._reformatter.reformat(picture, format=pixel_format)
        if pixel_format.startswith("gbr") and pixel_format.endswith("le"):
            bits = component_bits(pixel_format)
            for plane, channel in zip(result.planes, (1, 2, 0), strict=False):
                fill_plane(plane, narrow(pixels[..., channel], bits))
        return result

    def _from_bytes(self, pixels: NDArray[np.uint8], pixel_format: str) -> av.VideoFrame:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture.colorspace, picture.color_range = GBR, FULL
        if is_rgb(pixel_format):
            return self._reformatter.reformat(picture, format=pixel_format)
        # swscale rounds chroma down where it makes 8 bits of full range: half a step off.
        via_16_bits = self._tags.range == FULL and pixel_format in _FULL_RANGE_8_BIT
        result = self._reformatter.reformat(
            self._mark_chroma_left(picture),
            format=_FULL_RANGE_8_BIT[pixel_format] if via_16_bits else pixel_format,
            dst_colorspace=_SWSCALE_MATRIX[self._tags.matrix],
            dst_color_range=self._tags.range,
            interpolation=_ACCURATE,
        )
        return _round_to_8_bits(result, pixel_format) if via_16_bits else result

    def _marked(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The picture with the tags that are used, and its chroma where its codec puts it."""
        picture.colorspace = self._tags.matrix
        picture.color_range = self._tags.range
        return picture if self._says_chroma_position else self._mark_chroma_left(picture)

    def _mark_chroma_left(self, picture: av.VideoFrame) -> av.VideoFrame:
        # PyAV has no attribute for the chroma position; the filter copies no pixels.
        layout = (picture.format.name, picture.width, picture.height)
        if self._marker is None or self._marked_layout != layout:
            graph = av.filter.Graph()
            source = graph.add(
                "buffer",
                f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:"
                f"time_base=1/1:colorspace={picture.colorspace}:range={picture.color_range}",
            )
            marker = graph.add("setparams", "chroma_location=left")
            sink = graph.add("buffersink")
            source.link_to(marker)
            marker.link_to(sink)
            graph.configure()
            self._marker, self._marked_layout = graph, layout
        self._marker.push(picture)
        marked = self._marker.pull()
        assert isinstance(marked, av.VideoFrame)
        return marked


def _round_to_8_bits(deep: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
    """Full-range planar YUV of 16 bits to 8: luma v / 257, chroma 128 + (v - 32768) / 257."""
    result = av.VideoFrame(deep.width, deep.height, pixel_format)
    for number, (stored, target) in enumerate(zip(planes_of(deep), result.planes, strict=True)):
        zero, code = (32768, 128) if number else (0, 0)
        fill_plane(target, ((stored.astype(np.int32) - zero + 128) // 257 + code).astype(np.uint8))
    return result
