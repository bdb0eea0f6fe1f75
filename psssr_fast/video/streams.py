"""Copying sound, subtitles, attachments, chapters and titles from the source, packet by packet."""

from collections.abc import Iterator
from fractions import Fraction

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard, Stream
from av.video.stream import VideoStream

from psssr_fast.errors import OutputError
from psssr_fast.video.container import choose_stream, open_media
from psssr_fast.video.info import VideoInfo

# Written anew by the muxer, or true of the source file only.
_STALE_TAGS = frozenset(
    {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "vendor_id"}
)


class StreamCopier:
    """A second demuxer on the source, which feeds everything but the video to the output.

    Args:
        source: the video that is being processed; a file.
        output: the container to copy to; its video stream exists already.
        copy_audio: ``False`` leaves the sound out.

    Raises:
        InputError: the source cannot be opened any more.
        OutputError: the output's format cannot hold an audio stream of the source.
    """

    def __init__(self, source: VideoInfo, output: OutputContainer, copy_audio: bool) -> None:
        self._output = output
        self._source = source
        self._targets: dict[int, Stream] = {}
        self._notes: list[str] = []
        self._earliest = Fraction(0)
        self._input: InputContainer = open_media(source.path)
        try:
            self._add_streams(copy_audio)
            self._copy_descriptions()
        except BaseException:
            self._input.close()
            raise
        self._packets = self._read()
        self._waiting: Packet[Stream] | None = None

    def _add_streams(self, copy_audio: bool) -> None:
        video = choose_stream(self._input, self._source.path).index
        for stream in self._input.streams:
            if stream.index == video or (stream.type == "audio" and not copy_audio):
                stream.discard = Discard.all
                continue
            hidden = stream.discard == Discard.all
            reason = self._add(stream)
            if reason is None:
                continue
            stream.discard = Discard.all
            if stream.type == "audio":
                raise OutputError(
                    f"{self._source.path}: {self._output.format.name} cannot hold its sound "
                    f"(stream {stream.index}): {reason}. Write to a .mkv file instead."
                )
            # Probing has told about further video streams, and an MP4 keeps the titles of its
            # chapters in a stream that its demuxer hides.
            if stream.type != "video" and not hidden:
                self._notes.append(f"{stream.type} stream {stream.index} is dropped: {reason}")

    def _add(self, stream: Stream) -> str | None:
        """Add a copy of the stream to the output, or say why it cannot be there."""
        if stream.type not in ("audio", "subtitle", "attachment"):
            return f"{stream.type} streams are not copied"
        if stream.type == "attachment":
            if self._output.format.name != "matroska":
                return f"{self._output.format.name} holds no attachments"
        elif stream.codec_context is None:
            return "FFmpeg does not know its codec"
        try:
            target = self._output.add_stream_from_template(stream)
        except ValueError as error:
            return str(error)
        target.metadata.update(_kept(stream.metadata))
        target.disposition = stream.disposition
        if stream.type != "attachment":
            self._targets[stream.index] = target
        return None

    def _copy_descriptions(self) -> None:
        self._output.metadata.update(_kept(self._input.metadata))
        chapters = self._input.chapters()
        if chapters:
            self._output.set_chapters(chapters)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not carried over as it was, one line each."""
        if self._earliest == 0:
            return tuple(self._notes)
        later = f"everything is shown {float(-self._earliest) * 1000:.0f} ms later"
        return (*self._notes, f"{later}: {self._output.format.name} has no times before zero")

    def _shifts(self, stream: Stream) -> bool:
        """Whether FFmpeg moves all streams for the sake of one that begins before zero.

        The priming of AAC from an MP4 does. Matroska has a field for priming, which FFmpeg fills
        in for Opus and for what comes from Matroska.
        """
        return (
            self._output.format.name in ("matroska", "webm")
            and not self._source.container.startswith("matroska")
            and stream.codec_context.codec.canonical_name != "opus"
        )

    def describe(self, video: VideoStream) -> None:
        """Give the output's video stream the language and title of the source's."""
        stream = choose_stream(self._input, self._source.path)
        for key in ("language", "title", "handler_name"):
            if key in stream.metadata:
                video.metadata[key] = stream.metadata[key]

    def _read(self) -> "Iterator[Packet[Stream]]":
        streams = [stream for stream in self._input.streams if stream.index in self._targets]
        if not streams:
            return
        try:
            for packet in self._input.demux(streams):
                if packet.size:  # the last ones are empty: orders to flush a decoder
                    yield packet
        except av.FFmpegError as error:
            self._notes.append(f"sound and subtitles end early: {error.strerror}")

    def copy_until(self, time: Fraction | None) -> None:
        """Mux the packets that are due by ``time`` (seconds), or with ``None`` all that are left.

        Raises:
            av.FFmpegError: the output cannot be written.
        """
        while True:
            if self._waiting is None:
                self._waiting = next(self._packets, None)
            packet = self._waiting
            if packet is None or (time is not None and _due(packet) > time):
                return
            if packet.pts is not None and packet.pts < 0 and self._shifts(packet.stream):
                self._earliest = min(self._earliest, packet.pts * packet.time_base)
            packet.stream = self._targets[packet.stream_index]
            self._output.mux(packet)
            self._waiting = None

    def close(self) -> None:
        """Close the source."""
        self._input.close()


def _due(packet: "Packet[Stream]") -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts
    return (ticks or 0) * packet.time_base


def _kept(metadata: dict[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _STALE_TAGS
        and not key.startswith(("_STATISTICS", "BPS", "NUMBER_OF_"))
    }
