"""The alpha plane: taken out of pictures, enlarged beside them, put back."""

import av
import numpy as np
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from psssr_fast.video.deep import (
    Values,
    component_bits,
    fill_plane,
    narrow,
    plane_values,
    planes_of,
    to_8_bits,
    to_16_bits,
    widen,
)

# FFmpeg's own decoders of these leave alpha out: it is a second stream, beside every packet.
_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def has_alpha(pixel_format: str) -> bool:
    """Whether a pixel format has an alpha component; a palette's transparency does not count."""
    layout = VideoFormat(pixel_format)
    return not layout.has_palette and any(component.is_alpha for component in layout.components)


def alpha_decoder(stream: VideoStream) -> VideoCodecContext | None:
    """A decoder that gives the alpha of a stream, where the usual one leaves it out."""
    name = _DECODERS.get(stream.codec_context.codec.canonical_name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name is None or tags.get("alpha_mode") != "1":
        return None
    context = CodecContext.create(name, "r")
    assert isinstance(context, VideoCodecContext)
    usual = stream.codec_context
    context.options = usual.options
    context.color_primaries, context.color_trc = usual.color_primaries, usual.color_trc
    return context


def alpha_of(picture: av.VideoFrame, deep: bool, reformatter: VideoReformatter) -> Values | None:
    """Opacity, ``[height, width]``, 0 to 255 or, if ``deep``, to 65535; ``None`` if all is opaque.

    A palette counts only where it makes something transparent.
    """
    name = picture.format.name
    if picture.format.has_palette:
        alpha = _packed_alpha(picture, "rgba", reformatter)
        if alpha.min() == 255:
            return None
    elif not has_alpha(name):
        return None
    else:
        alpha = _stored(picture, reformatter)
    return to_16_bits(alpha) if deep else to_8_bits(alpha)


def _stored(picture: av.VideoFrame, reformatter: VideoReformatter) -> Values:
    """8 bits as they are; more, brought to 16."""
    name, bits = picture.format.name, component_bits(picture.format.name)
    if name.startswith(("yuva", "gbrap")):
        if bits == 8:
            return plane_values(picture.planes[3], 8)
        if name.endswith("le"):
            return widen(planes_of(picture)[3], bits)
    return _packed_alpha(picture, "rgba" if bits == 8 else "rgba64le", reformatter)


def _packed_alpha(picture: av.VideoFrame, through: str, reformatter: VideoReformatter) -> Values:
    values = reformatter.reformat(picture, format=through).to_ndarray()[..., 3]
    if through == "rgba":
        return values.astype(np.uint8, copy=False)
    return values.astype(np.uint16, copy=False)


def enlarge_alpha(alpha: Values, height: int, width: int) -> Values:
    """The plane at another size, bicubic; at its own size unchanged."""
    if alpha.shape == (height, width):
        return alpha
    import torch

    from psssr_fast.resize import resize_frames

    peak = np.iinfo(alpha.dtype).max
    plane = torch.from_numpy(alpha.astype(np.float32) * (2 / peak) - 1)
    larger = resize_frames(plane[None, None], height, width)[0, 0].numpy()
    levels = np.rint((larger + 1) * (peak / 2))
    return levels.astype(np.uint8) if peak == 255 else levels.astype(np.uint16)


def lay_alpha(
    picture: av.VideoFrame, alpha: Values, reformatter: VideoReformatter
) -> av.VideoFrame:
    """The picture, whose format has alpha, with this opacity.

    Args:
        picture: opaque so far.
        alpha: of its size, uint8 or uint16.
    """
    name, bits = picture.format.name, component_bits(picture.format.name)
    if name.startswith(("yuva", "gbrap")):
        values = to_8_bits(alpha) if bits == 8 else narrow(to_16_bits(alpha), bits)
        fill_plane(picture.planes[3], values)
        return picture
    through = "rgba" if bits == 8 else "rgba64le"
    seen = reformatter.reformat(picture, format=through)
    pixels = seen.to_ndarray()
    pixels[..., 3] = to_8_bits(alpha) if bits == 8 else to_16_bits(alpha)
    seen = av.VideoFrame.from_ndarray(pixels, format=through)
    return reformatter.reformat(seen, format=name)
