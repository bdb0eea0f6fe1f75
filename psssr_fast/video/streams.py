"""Copying sound, subtitles, attachments, chapters and titles from the source, packet by packet."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Discard, Disposition, Stream
from av.video.stream import VideoStream

from psssr_fast.errors import InputError, OutputError
from psssr_fast.video.carried import Expected, not_kept, tags_to_keep
from psssr_fast.video.container import check_readable, choose_stream, demux, open_media
from psssr_fast.video.info import VideoInfo
from psssr_fast.video.limits import UNLIMITED

_COVERS = {
    "mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png"),
    "bmp": ("cover.bmp", "image/bmp"), "webp": ("cover.webp", "image/webp"),
}  # fmt: skip


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
        self._form = output.format.name
        self._source = source
        self._targets: dict[int, Stream] = {}
        self._expected: list[Expected] = []
        self._notes: list[str] = []
        self._earliest = Fraction(0)
        self._latest: dict[int, int] = {}  # time of the last packet, by stream of the source
        self._fallen = 0
        self._input: InputContainer = _open_again(source.path)
        try:
            self._add_streams(copy_audio)
            self._copy_descriptions()
        except BaseException:
            self._input.close()
            raise
        self._packets = self._read()
        self._waiting: Packet[Stream] | None = None

    def _add_streams(self, copy_audio: bool) -> None:
        video = choose_stream(self._input, self._source.path)
        attached = []  # last, because demuxers number them last
        for stream in self._input.streams:
            cover = stream.type == "video" and stream.disposition & Disposition.attached_pic
            left_out = stream.type == "video" and not cover  # probing has told about these
            if left_out or (stream.type == "audio" and not copy_audio):
                stream.discard = Discard.all
            elif cover or stream.type == "attachment":
                attached.append(stream)
            else:
                self._add_or_note(stream, video)
        for stream in attached:
            self._add_or_note(stream, video)

    def _add_or_note(self, stream: Stream, video: VideoStream) -> None:
        # An MP4 keeps the titles of its chapters in a stream that its demuxer hides, and the
        # timecode that its video begins with, which is one of the tags of the video, in another.
        timecode = stream.metadata.get("timecode") if stream.type == "data" else None
        known = timecode is not None and timecode == video.metadata.get("timecode")
        if known or stream.discard == Discard.all:
            stream.discard = Discard.all
            return
        reason = self._add(stream)
        if reason is None:
            return
        stream.discard = Discard.all
        if stream.type == "audio":
            raise OutputError(
                f"{self._source.path}: {self._form} cannot hold its sound "
                f"(stream {stream.index}): {reason}. Write to a .mkv file instead."
            )
        kind = "cover picture" if stream.type == "video" else f"{stream.type} stream"
        self._notes.append(f"{kind} {stream.index} is dropped: {reason}")

    def _add(self, stream: Stream) -> str | None:
        """Add a copy of the stream to the output, or say why it cannot be there."""
        if stream.type not in ("audio", "subtitle", "attachment", "data", "video"):
            return f"{stream.type} streams are not copied"
        attached = stream.type in ("attachment", "video")
        if self._form == "matroska" and stream.type == "video":
            return self._add_cover_file(stream)
        if attached and self._form == "webm":
            return "webm holds no attachments"
        if stream.type == "attachment":
            if self._form != "matroska":
                return f"{self._form} holds no attachments"
        elif stream.codec_context is None and stream.type != "data":
            return "FFmpeg does not know its codec"
        if stream.type in ("data", "subtitle", "video") and not _accepts(self._form, stream):
            return f"{self._form} cannot hold {getattr(stream, 'name', None) or 'data of its kind'}"
        try:
            target = self._output.add_stream_from_template(stream)
        except ValueError as error:
            return str(error)
        self._describe(stream, target)
        if stream.type != "attachment":
            self._targets[stream.index] = target
        return None

    def _add_cover_file(self, stream: Stream) -> str | None:
        """Matroska has cover pictures as attached files."""
        stream.discard = Discard.all
        usual = _COVERS.get(stream.codec_context.codec.canonical_name)
        with _open_again(self._source.path) as container:
            chosen = container.streams[stream.index]
            packets = (packet for packet in demux(container, chosen) if packet.size)
            picture = next(packets, None)
            if usual is None or picture is None:
                return "matroska cannot hold a picture of its kind"
            name = stream.metadata.get("filename", usual[0])
            kind = stream.metadata.get("mimetype", usual[1])
            self._output.add_attachment(name, kind, bytes(picture))
        return None

    def _describe(self, stream: Stream, target: Stream) -> None:
        tags = tags_to_keep(stream.metadata)
        target.metadata.update(tags)
        target.disposition = stream.disposition
        if not isinstance(stream, AttachmentStream) and stream.type != "video":
            name = f"{stream.type} stream {stream.index}"
            self._expected.append(Expected(target.index, name, tags, stream.disposition))

    def _copy_descriptions(self) -> None:
        self._tags = tags_to_keep(self._input.metadata)
        self._output.metadata.update(self._tags)
        self._chapters = self._input.chapters()
        if self._chapters:
            self._output.set_chapters(self._chapters)

    def check(self, path: Path) -> None:
        """Look into the finished output, ``path``, for what its format did not keep.

        It is added to the warnings.

        Raises:
            InputError: the output cannot be opened.
        """
        self._notes += not_kept(path, self._tags, self._expected, self._chapters)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not carried over as it was, one line each."""
        notes = list(self._notes)
        if self._fallen:
            notes.append(
                f"{self._fallen} packet(s) of sound or subtitles with falling times left out"
            )
        if self._earliest:
            later = f"everything is shown {float(-self._earliest) * 1000:.0f} ms later"
            notes.append(f"{later}: {self._form} has no times before zero")
        return tuple(notes)

    def _shifts(self, stream: Stream) -> bool:
        """Whether FFmpeg moves all streams for the sake of one that begins before zero.

        The priming of AAC from an MP4 does. Matroska has a field for priming, which FFmpeg fills
        in for Opus and for what comes from Matroska.
        """
        return (
            self._form in ("matroska", "webm")
            and not self._source.container.startswith("matroska")
            and stream.codec_context.codec.canonical_name != "opus"
        )

    def describe(self, video: VideoStream) -> None:
        """Give the output's video stream the language, the title and all tags of the source's."""
        stream = choose_stream(self._input, self._source.path)
        tags = tags_to_keep(stream.metadata)
        if "timecode" in tags and not _accepts_timecode(self._form, tags["timecode"], video):
            self._notes.append(f"{self._form} cannot hold the timecode {tags.pop('timecode')}")
        video.metadata.update(tags)
        video.disposition = stream.disposition
        self._expected.append(Expected(video.index, "the video", tags, stream.disposition))

    def _read(self) -> "Iterator[Packet[Stream]]":
        streams = [stream for stream in self._input.streams if stream.index in self._targets]
        if not streams:
            return
        try:
            for packet in demux(self._input, *streams):
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
            if self._in_order(packet):
                packet.stream = self._targets[packet.stream_index]
                self._output.mux(packet)
            self._waiting = None

    def _in_order(self, packet: "Packet[Stream]") -> bool:
        """Whether a packet's time does not fall behind its stream's last, which no output takes."""
        if packet.dts is None:
            return True
        if packet.dts < self._latest.get(packet.stream_index, packet.dts):
            self._fallen += 1
            return False
        self._latest[packet.stream_index] = packet.dts
        return True

    def close(self) -> None:
        """Close the source."""
        self._input.close()


def _open_again(path: Path) -> InputContainer:
    """Open a source that was read before.

    Raises:
        InputError: it is not there any more, or has become something else.
    """
    try:
        return open_media(check_readable(path), UNLIMITED)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{path}: cannot be read any more, to copy its sound: {reason}. Put it back and run "
            "the same command again."
        ) from error


def _due(packet: "Packet[Stream]") -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts
    return (ticks or 0) * packet.time_base


def _accepts(form: str, stream: Stream) -> bool:
    """Whether a muxer takes a stream; some say so only when they write their header."""
    try:
        with av.open(io.BytesIO(), "w", format=form) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def _accepts_timecode(form: str, timecode: str, video: VideoStream) -> bool:
    """Whether a muxer can begin a track of timecodes; only those of MP4 and MOV make one."""
    try:
        with av.open(io.BytesIO(), "w", format=form) as trial:
            context = video.codec_context
            rate = context.framerate
            stream = trial.add_mux_stream(
                "mpeg4", rate=rate, width=context.width, height=context.height
            )
            stream.time_base = context.time_base
            stream.metadata["timecode"] = timecode
            trial.start_encoding()
    except av.FFmpegError:
        return False
    return True
