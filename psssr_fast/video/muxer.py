"""One output video: muxer, the encoder that it is made for, and the copied streams beside it."""

import contextlib
import math
from fractions import Fraction
from pathlib import Path

import av
from av.codec import Codec
from av.video.stream import VideoStream

from psssr_fast.errors import OutputError, UsageError
from psssr_fast.video.encoder import CONTAINERS, FALLBACK_RATE, EncoderSettings, losses
from psssr_fast.video.frame_encoder import open_encoder, set_up
from psssr_fast.video.info import VideoInfo
from psssr_fast.video.streams import StreamCopier

_MILLISECOND = Fraction(1, 1000)  # the only tick that FFmpeg's Matroska muxer knows
_CODECS_WITH_ASPECT = ("h264", "hevc")  # these say themselves what shape a pixel has
_LARGEST_TIMESCALE = 2**31 - 1


class Output:
    """An output container with its streams set up. Nothing is on the disk before the header.

    Args:
        path: where it is to be in the end.
        temporary: where it is written.
        source: the input.
        size: of the frames: width, height.
        settings: settled encoder settings.

    Raises:
        InputError: the source cannot be opened any more.
        OutputError: the format cannot hold the video or the sound.
    """

    def __init__(
        self,
        path: Path,
        temporary: Path,
        source: VideoInfo,
        size: tuple[int, int],
        settings: EncoderSettings,
    ) -> None:
        self._path = path
        self._temporary = temporary
        self._settings = settings
        self._source = source
        self._size = size
        self._notes = losses(settings, source)
        self.copier: StreamCopier | None = None
        # bitexact: equal input gives equal bytes; Matroska would add a random number otherwise.
        options = {"fflags": "+bitexact"}
        form = CONTAINERS[path.suffix.lower()]
        if form in ("mp4", "mov"):
            options["movflags"] = "+faststart"
            options["movie_timescale"] = str(self._movie_timescale())
        else:
            self._check_matroska(form)
        self.container = av.open(str(temporary), "w", format=form, container_options=options)
        try:
            self.stream = self._add_video()
            if source.kind == "video":
                self.copier = StreamCopier(source, self.container, settings.audio == "copy")
                self.copier.describe(self.stream)
        except BaseException:
            self.container.close()
            raise

    def _check_matroska(self, form: str) -> None:
        source = self._source
        if (source.time_base / _MILLISECOND).denominator != 1:
            self._notes.append(f"{form} keeps whole milliseconds: times move by up to 0.5 ms")
        codec = Codec(self._settings.codec, "w").canonical_name
        if source.sample_aspect_ratio != 1 and codec not in _CODECS_WITH_ASPECT:
            # Matroska has a field for it, which PyAV cannot reach.
            raise OutputError(
                f"{self._path}: {form} with {codec} cannot keep pixels of shape "
                f"{source.sample_aspect_ratio}: the picture would look squeezed. Write a .mp4."
            )

    def _movie_timescale(self) -> int:
        """Ticks a second for the delay of streams that start late, so that it is kept exactly."""
        streams = (*self._source.audio, *self._source.subtitles)
        starts = (self._source.start_time, *(stream.start_time for stream in streams))
        timescale = math.lcm(1000, *(start.denominator for start in starts if start and start > 0))
        if timescale <= _LARGEST_TIMESCALE:
            return timescale
        self._notes.append("streams that start late are moved by up to 1 ms")
        return 1000

    def _add_video(self) -> VideoStream:
        settings, source = self._settings, self._source
        rate = source.average_rate or FALLBACK_RATE
        if Codec(settings.codec, "w").type != "video":
            raise UsageError(f"{settings.codec} is not a video encoder; try libx264")
        try:
            stream = self.container.add_stream(
                settings.codec, rate=rate, options=settings.codec_options()
            )
        except ValueError as error:
            raise OutputError(
                f"{self._path}: cannot hold {settings.codec}: {error}. "
                "Choose another codec or a .mkv file."
            ) from error
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        set_up(context, settings, source, self._size)
        stream.time_base = source.time_base
        if settings.codec == "libx265" and self.container.format.name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # Apple's players do not take FFmpeg's default, hev1
        if "444" in settings.pixel_format and any(side % 2 for side in self._size):
            self._notes.append(
                f"{self._size[0]}x{self._size[1]} is stored as {settings.pixel_format}, which "
                "many players cannot show; even sides avoid it"
            )
        return stream

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not carried over, one line each."""
        return (*self._notes, *(self.copier.warnings if self.copier else ()))

    def open_encoder(self) -> None:
        """Open the encoder, which then judges its settings.

        Raises:
            OutputError: it refuses the size, the pixel format or a value.
            UsageError: it does not know an option.
        """
        open_encoder(self.stream.codec_context, self._settings, self._size, self._path)

    def write_header(self) -> None:
        """Start the file on the disk.

        Raises:
            OutputError: the format refuses the streams.
            av.FFmpegError: the file cannot be written.
        """
        try:
            self.container.start_encoding()
        except av.error.ArgumentError as error:  # some muxers look at the codecs only now
            streams = ", ".join(stream.codec_context.name for stream in self.container.streams)
            raise OutputError(
                f"{self._path}: {self.container.format.name} refuses streams of {streams}. "
                "Write to a .mkv file instead."
            ) from error

    def finish(self) -> tuple[str, ...]:
        """Copy what is left of the other streams and finish the file.

        Returns:
            What is not carried over, one line each; the finished file was looked into.

        Raises:
            av.FFmpegError: the file cannot be finished.
        """
        if self.copier is not None:
            self.copier.copy_until(None)
        self.close()
        if self.copier is not None:
            self.copier.check(self._temporary)
        return self.warnings

    def close(self) -> None:
        """Close output and source. Finishes the file if its header was written.

        Raises:
            av.FFmpegError: the file cannot be finished.
        """
        try:
            self.container.close()
        finally:
            if self.copier is not None:
                self.copier.close()

    def discard(self) -> None:
        """Close both because an error is on its way; what was written is of no use."""
        with contextlib.suppress(av.FFmpegError):
            self.close()
