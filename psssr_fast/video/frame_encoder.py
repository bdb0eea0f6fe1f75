"""From frames to compressed packets, whatever becomes of them."""

from pathlib import Path

import av
from av.codec import Codec
from av.codec.context import CodecContext
from av.codec.context import Flags as CodecFlags
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from psssr_fast.errors import OutputError, UsageError
from psssr_fast.video.color import PixelConverter, output_tags
from psssr_fast.video.encoder import FALLBACK_RATE, EncoderSettings
from psssr_fast.video.info import Frame, VideoInfo


def set_up(
    context: VideoCodecContext, settings: EncoderSettings, source: VideoInfo, size: tuple[int, int]
) -> None:
    """Tell an encoder that is not open yet what it is to make.

    Args:
        context: of the encoder.
        settings: settled encoder settings, whose options the context has already.
        source: the input.
        size: of the frames: width, height.
    """
    context.width, context.height = size
    context.pix_fmt = settings.pixel_format
    # The source's own ticks: every timestamp passes through as the integer it was.
    context.time_base = source.time_base
    context.sample_aspect_ratio = source.sample_aspect_ratio
    context.thread_count = settings.threads
    context.flags |= CodecFlags.frame_duration
    tags = output_tags(source.color_used, settings.pixel_format)
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    context.colorspace, context.color_range = tags.matrix, tags.range


def open_encoder(
    context: VideoCodecContext, settings: EncoderSettings, size: tuple[int, int], path: Path
) -> None:
    """Open an encoder, which then judges its settings.

    Raises:
        OutputError: it refuses the size, the pixel format or a value.
        UsageError: it does not know an option.
    """
    try:
        context.open()
    except av.FFmpegError as error:
        options = " ".join(f"{name}={value}" for name, value in settings.codec_options().items())
        raise OutputError(
            f"{path}: encoder {settings.codec} refuses {size[0]}x{size[1]} "
            f"{settings.pixel_format} {options}: {error.strerror}. Change its settings."
        ) from error
    unknown = [name for name, _ in settings.options if name in context.options]
    if unknown:
        raise UsageError(f"encoder {settings.codec} has no option {', '.join(unknown)}")


def make_context(
    settings: EncoderSettings, source: VideoInfo, size: tuple[int, int], path: Path
) -> VideoCodecContext:
    """An open encoder of its own, set up like that of an output file; see :func:`open_encoder`."""
    context = CodecContext.create(Codec(settings.codec, "w"))
    assert isinstance(context, VideoCodecContext)
    context.options = settings.codec_options()
    context.framerate = source.average_rate or FALLBACK_RATE
    context.flags |= CodecFlags.global_header  # as all our containers ask for
    set_up(context, settings, source, size)
    open_encoder(context, settings, size, path)
    return context


class FrameEncoder:
    """Frames in, packets out.

    Args:
        context: of an open encoder.
        settings: settled encoder settings.
        source: the input.
        size: of the frames: width, height.

    Attributes:
        frames: how many were encoded.
        end: when the last stops being shown, ticks.
    """

    def __init__(
        self,
        context: VideoCodecContext,
        settings: EncoderSettings,
        source: VideoInfo,
        size: tuple[int, int],
    ) -> None:
        self.frames = self.end = 0
        self._context, self._format = context, settings.pixel_format
        self._time_base = source.time_base
        self._shape = (size[1], size[0], 3)
        self._convert = PixelConverter(output_tags(source.color_used, settings.pixel_format))
        rate = source.average_rate or FALLBACK_RATE
        self._usual_duration = max(1, round(1 / (rate * source.time_base)))
        self._last_pts: int | None = None

    def encode(self, frame: Frame) -> "list[Packet[VideoStream]]":
        """Packets that are ready after one more frame; often none.

        Raises:
            UsageError: the frame's size is not the output's, or its time not later than the last.
        """
        if frame.pixels.shape != self._shape:
            raise UsageError(f"frame of shape {frame.pixels.shape}; the output needs {self._shape}")
        if self._last_pts is not None and frame.pts <= self._last_pts:
            raise UsageError(f"frame at {frame.pts} after {self._last_pts}; timestamps must grow")
        self._last_pts = frame.pts
        picture = self._picture(frame)
        picture.pts, picture.time_base = frame.pts, self._time_base
        picture.duration = frame.duration or self._usual_duration
        self.end = frame.pts + picture.duration
        self.frames += 1
        return self._context.encode(picture)

    def finish(self) -> "list[Packet[VideoStream]]":
        """The packets that are left."""
        return self._context.encode(None)

    def _picture(self, frame: Frame) -> av.VideoFrame:
        return self._convert.from_rgb(frame.pixels, self._format, frame.alpha)
