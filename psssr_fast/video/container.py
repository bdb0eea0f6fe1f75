"""Opening media files safely, and telling whether one has been cut short."""

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from psssr_fast.errors import InputError
from psssr_fast.files import open_input
from psssr_fast.video.alpha import alpha_decoder
from psssr_fast.video.limits import DEFAULT_LIMITS, Limits, declared_metadata, texts_size
from psssr_fast.video.matroska import EBML_HEADER, missing_from_matroska

# Demuxers that follow references to other files or hosts, show text as video, or are devices.
_REFUSED_DEMUXERS = frozenset(
    {
        "concat", "dash", "hls", "imf", "mlv", "vobsub", "webm_dash_manifest",
        "rtp", "rtsp", "sap", "sdp",
        "adf", "bin", "idf", "tty", "xbin", "data", "ffmetadata",
        "alsa", "fbdev", "kmsgrab", "lavfi", "oss", "video4linux2,v4l2", "x11grab",
    }
)  # fmt: skip
_AnyStream = TypeVar("_AnyStream", bound=Stream)
_REMEDY = "Give a file that ffmpeg can read, or a folder of PNG frames."


@functools.cache
def _allowed_demuxers(planar: bool) -> str:
    refused = _REFUSED_DEMUXERS | ({"image2"} if planar else set())
    return ",".join(sorted(av.formats_available - refused))


def check_readable(path: str | Path) -> Path:
    """The path as a :class:`~pathlib.Path`, if there is something to read.

    Raises:
        InputError: it is a network address, does not exist, is not a regular file or a folder, is
            empty, or may not be read.
    """
    if "://" in str(path):
        raise InputError(
            f"{path}: network addresses are not read. Download the file and give its path."
        )
    file = Path(path)
    if not os.path.exists(file):  # that of Path raises for names that the system refuses
        raise InputError(f"{path}: no such file or folder. Check the path.")
    if not os.path.isdir(file):
        if not os.path.isfile(file):
            raise InputError(f"{path}: not a regular file, which it must be. {_REMEDY}")
        if file.stat().st_size == 0:
            raise InputError(f"{path}: empty file (0 bytes). {_REMEDY}")
    if not os.access(file, os.R_OK):
        raise InputError(f"{path}: permission denied. Make it readable for this user.")
    return file


def open_media(path: Path, limits: Limits = DEFAULT_LIMITS) -> InputContainer:
    """Open a local media file: only that file, no playlists, no devices, no text.

    Raises:
        InputError: FFmpeg cannot open it, or it is of a refused kind, or beyond the limits.
    """
    limits.check_png(path)  # with the numbers; FFmpeg would only say that they are wrong
    limits.check_metadata(path, declared_metadata(path))
    container = _open(path, limits)
    try:
        limits.check_streams(path, len(container.streams))
        tables = [container.metadata, *(stream.metadata for stream in container.streams)]
        tables += [chapter["metadata"] for chapter in container.chapters()]
        limits.check_metadata(path, texts_size(tables))
    except BaseException:
        container.close()
        raise
    return container


def _open(path: Path, limits: Limits) -> InputContainer:
    options = {
        "protocol_whitelist": "file",
        # Of a picture a.Y, image2 would take the colours from a.U and a.V.
        "format_whitelist": _allowed_demuxers(path.suffix.lower() == ".y"),
        "pattern_type": "none",  # "%d" in the name of a picture stands for no other pictures
        **limits.container_options(),
    }
    try:
        return av.open(
            os.path.abspath(path),  # which cannot be taken for a protocol such as "concat:"
            "r",
            options=limits.decoder_options(),
            container_options=options,
            metadata_errors="replace",
        )
    except av.error.ArgumentError as error:
        # What FFmpeg answers for a demuxer or protocol that is not on its whitelist.
        raise InputError(
            f"{path}: not a video: text, playlists and devices are not read. {_REMEDY}"
        ) from error
    except av.error.MemoryError as error:  # what FFmpeg answers for a stream too many, too
        raise InputError(
            f"{path}: cannot be opened: more than {limits.max_streams} streams, or it asks for "
            "more memory than there is. Get another copy."
        ) from error
    except av.FFmpegError as error:
        missing = missing_bytes(path)
        if missing:
            raise InputError(
                f"{path}: truncated: {missing} bytes are missing, and with them the index. "
                "Get a complete copy."
            ) from error
        raise InputError(f"{path}: not a video: {error.strerror}. {_REMEDY}") from error


def choose_stream(
    container: InputContainer, path: Path, limits: Limits | None = None
) -> VideoStream:
    """The video stream that is meant to be seen; with limits, ready to be decoded.

    Of those that are no cover pictures the first that the file calls its default, or the first.

    Raises:
        InputError: there is none, FFmpeg has no decoder for it, or its frames are too large.
    """
    all_of_them = container.streams.video
    videos = [item for item in all_of_them if not item.disposition & Disposition.attached_pic]
    if not videos:
        sounds = f"{len(container.streams.audio)} audio stream(s)"
        found = "only a cover picture" if all_of_them else sounds
        raise InputError(f"{path}: no video stream; found {found}. {_REMEDY}")
    stream = next((item for item in videos if item.disposition & Disposition.default), videos[0])
    if stream.codec_context is None:
        raise InputError(f"{path}: FFmpeg has no decoder for its video. Convert it first.")
    if limits is not None:
        limits.check_size(path, stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = limits.decoder_options()  # for frames that differ
    return stream


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """Prepare the decoder of a stream, which then gives the same for the same bytes everywhere.

    It uses one thread. With several, FFmpeg's H.264 decoder reports damage only where the thread
    that finds it is early enough, and repairs pictures otherwise than with one.
    """
    decoder = alpha_decoder(stream) or stream.codec_context
    decoder.thread_count = 1
    return decoder


def demux(container: InputContainer, *streams: _AnyStream) -> "Iterator[Packet[_AnyStream]]":
    """The packets of some streams, and at the end an empty one for each.

    Raises:
        av.FFmpegError: the file cannot be read further.
    """
    try:
        yield from cast("Iterator[Packet[_AnyStream]]", container.demux(*streams))
    except IndexError:
        # PyAV at the end of a file, where it comes to streams that began somewhere inside. The
        # ones that were asked for are behind it.
        return


def missing_bytes(path: Path) -> int:
    """How many bytes a file is shorter than its own headers say.

    Knows MP4/MOV (top-level boxes), Matroska/WebM (size of the segment) and AVI (size of the
    RIFF chunks); returns 0 for complete files and for all other kinds, which cannot tell.
    """
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(12)
        if start[:4] == EBML_HEADER:
            return missing_from_matroska(file, size)
        if start[:4] == b"RIFF":
            return _missing_from_riff(file, size)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _missing_from_mp4(file, size)
    return 0


def _missing_from_mp4(file: BinaryIO, size: int) -> int:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8))
        if length < 8:  # 0: up to the end of the file; anything else is no box
            break
        position += length
        if position > size and kind in (b"mdat", b"moov", b"moof"):
            return position - size
    return 0


def _missing_from_riff(file: BinaryIO, size: int) -> int:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or length == 0:  # 0: its writer never came back to fill it in
            break
        position += 8 + length + length % 2
    return max(0, position - size - 1)  # the last padding byte may be left out
