"""What is in a file: everything the rest of the package needs to know before it reads frames."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard, Disposition, Stream
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from psssr_fast.errors import InputError
from psssr_fast.video.alpha import alpha_of
from psssr_fast.video.color import resolve, tags_of
from psssr_fast.video.container import (
    choose_stream,
    decoder_of,
    demux,
    missing_bytes,
    open_media,
)
from psssr_fast.video.hdr import light_level_of, mastering_display_of
from psssr_fast.video.info import StreamInfo, VideoInfo
from psssr_fast.video.limits import DEFAULT_LIMITS, Limits
from psssr_fast.video.orientation import Orientation, orientation_of
from psssr_fast.video.watch import INTERLACED, lost_with

_MICROSECONDS = 1_000_000
_FIELDS = frozenset({2, 3, 4, 5})  # orders of two fields, of FFmpeg's AVFieldOrder


def probe_file(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[VideoInfo, Orientation]:
    """Describe a media file and how its pictures are to be turned. Decodes one frame.

    Raises:
        InputError: it is not a video that can be decoded, or it is beyond the limits.
    """
    with open_media(path, limits) as container:
        stream = choose_stream(container, path, limits)
        picture = _first_picture(container, stream, path)
        found = orientation_of(picture)
        orientation = found or Orientation()
        try:
            info = _describe(path, container, stream, picture, orientation)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        notes = [*_notes(path, container, info), *lost_with(picture)]
        if found is None:
            notes.append("its display matrix is not a right angle: frames are left as stored")
        audio = tuple(_stream_info(item) for item in container.streams.audio)
        subtitles = tuple(_stream_info(item) for item in container.streams.subtitles)
        info = replace(info, audio=audio, subtitles=subtitles, warnings=tuple(notes))
        info = replace(
            info,
            alpha=alpha_of(picture, False, VideoReformatter()) is not None,
            mastering_display=mastering_display_of(picture),
            light_level=light_level_of(picture),
            **_beside(container),
        )
        # An estimate may be a frame off; reading counts, and stops at the limit.
        limits.check_frames(path, info.frames if info.frames_exact else (info.frames or 0) // 2)
        limits.check_duration(path, info.duration_s)
        return info, orientation


def _first_picture(container: InputContainer, stream: VideoStream, path: Path) -> av.VideoFrame:
    reason, failure = "it holds no frames", None
    decoder = decoder_of(stream)
    packets = demux(container, stream)
    try:
        for packet in packets:
            try:
                pictures = decoder.decode(packet if packet.size else None)
            except av.error.InvalidDataError as error:
                reason = error.strerror or "invalid data"
                continue  # a file cut out of a longer one may begin between key frames
            if pictures:
                return pictures[0]
    except av.FFmpegError as error:
        reason, failure = error.strerror or str(error), error
    missing = missing_bytes(path)
    if isinstance(failure, av.error.ArgumentError):
        reason = "its frames are of no possible size, or have more pixels than --max-pixels allows"
    if missing:
        reason = f"truncated before its first frame: the file is {missing} bytes short"
    size = f"{stream.codec_context.width}x{stream.codec_context.height}"
    raise InputError(
        f"{path}: cannot decode its video ({size}): {reason}. "
        "Check that the file plays, or get another copy."
    )


def _describe(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    picture: av.VideoFrame,
    orientation: Orientation,
) -> VideoInfo:
    context = stream.codec_context
    codec, layout = context.codec.canonical_name, picture.format
    tags = tags_of(picture)
    rate = stream.average_rate or stream.guessed_rate
    time_base = stream.time_base or Fraction(1, _MICROSECONDS)
    duration = _duration_s(container, stream)
    frames, exact = _count(container, stream, duration, rate)
    width, height, aspect = _as_shown(stream, picture, orientation)
    start = picture.pts if picture.pts is not None else stream.start_time or 0
    return VideoInfo(
        path=path,
        kind="video",
        width=width,
        height=height,
        stored_width=picture.width,
        stored_height=picture.height,
        frames=frames,
        frames_exact=exact,
        duration_s=duration,
        average_rate=rate or None,
        time_base=time_base,
        start_time=start * time_base,
        end_time=_end_time(container, stream),
        container=container.format.name,
        codec=codec,
        pixel_format=layout.name,
        bit_depth=max(component.bits for component in layout.components),
        color=tags,
        color_used=resolve(tags, layout.name, picture.height, codec),
        rotation=orientation.rotation,
        sample_aspect_ratio=aspect,
        interlaced=picture.interlaced_frame or context.field_order in _FIELDS,
    )


def _as_shown(
    stream: VideoStream, picture: av.VideoFrame, orientation: Orientation
) -> tuple[int, int, Fraction]:
    """Width, height and shape of pixels after turning."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if orientation.transpose:
        return picture.height, picture.width, 1 / aspect
    return picture.width, picture.height, aspect


def _codec_name(stream: Stream) -> str:
    if stream.codec_context is not None:
        return stream.codec_context.codec.canonical_name
    # Of sound that FFmpeg cannot decode, PyAV does not even have a name to ask for.
    return getattr(stream, "name", None) or "unknown"


def _stream_info(stream: Stream) -> StreamInfo:
    time_base = stream.time_base
    start = stream.start_time
    context = stream.codec_context
    audio = stream if isinstance(stream, AudioStream) and context is not None else None
    return StreamInfo(
        index=stream.index,
        codec=_codec_name(stream),
        language=stream.metadata.get("language"),
        title=stream.metadata.get("title"),
        start_time=None if start is None or time_base is None else start * time_base,
        sample_rate=None if audio is None else audio.codec_context.sample_rate,
        channels=None if audio is None else audio.codec_context.channels,
    )


def _beside(container: InputContainer) -> dict[str, Any]:
    """The fields of :class:`VideoInfo` for what is neither picture nor sound nor subtitles."""
    streams = container.streams
    covers = [item for item in streams.video if item.disposition & Disposition.attached_pic]
    return {
        # Hidden by its demuxer is the stream in which an MP4 keeps the titles of chapters.
        "data": tuple(_stream_info(s) for s in streams.data if s.discard != Discard.all),
        "chapters": len(container.chapters()),
        "attachments": tuple(
            item.metadata.get("filename", "cover picture" if item in covers else "attachment")
            for item in (*covers, *streams.attachments)
        ),
    }


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / _MICROSECONDS if container.duration else None


def _end_time(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """The end in an MP4 index. Of its single frames only the distances in decoding order are
    known, which are not those between frames as shown."""
    if not container.format.name.startswith("mov") or not stream.duration or not stream.time_base:
        return None
    return ((stream.start_time or 0) + stream.duration) * stream.time_base


def _count(
    container: InputContainer, stream: VideoStream, duration: float | None, rate: Fraction | None
) -> tuple[int | None, bool]:
    """Number of frames, and whether it is a count: only an MP4 index lists every shown frame."""
    if container.format.name.startswith("mov") and stream.frames and len(stream.index_entries):
        return sum(not entry.is_discard for entry in stream.index_entries), True
    if stream.frames:
        return stream.frames, False
    return (round(duration * rate) if duration and rate else None), False


def _notes(path: Path, container: InputContainer, info: VideoInfo) -> list[str]:
    notes = []
    missing = missing_bytes(path)
    if missing:
        notes.append(f"truncated: the file is {missing} bytes shorter than its header says")
    if info.interlaced:
        notes.append(INTERLACED)
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if len(videos) > 1:
        notes.append(f"{len(videos) - 1} more video stream(s) are left out")
    return notes
