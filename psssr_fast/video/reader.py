"""Reading frames, one at a time, in bounded memory."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from psssr_fast.errors import InputError
from psssr_fast.video.color import PixelConverter
from psssr_fast.video.container import (
    check_readable,
    choose_stream,
    decoder_of,
    demux,
    missing_bytes,
    open_media,
)
from psssr_fast.video.images import ImageReader, is_image_source, probe_images
from psssr_fast.video.info import Frame, Reader, VideoInfo
from psssr_fast.video.limits import DEFAULT_LIMITS, Limits
from psssr_fast.video.matroska import Contents, count_frames
from psssr_fast.video.probe import probe_file
from psssr_fast.video.timing import PresentationTimes
from psssr_fast.video.watch import Watcher

DEFAULT_IMAGE_RATE = Fraction(25)  # what ffmpeg assumes for numbered pictures

# One packet of these is one frame, so a frame that the decoder swallowed can be noticed.
_FRAME_PER_PACKET = frozenset({"h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "png"})


def probe(
    path: str | Path,
    *,
    frame_rate: Fraction = DEFAULT_IMAGE_RATE,
    limits: Limits = DEFAULT_LIMITS,
    sandbox: bool = False,
) -> VideoInfo:
    """Describe a video file, a folder of PNG frames, or a pattern such as ``frames/%06d.png``.

    Args:
        path: what to look at.
        frame_rate: frames a second of a folder of PNG frames, which cannot say it itself.
        limits: on what is accepted.
        sandbox: do it in a confined process; see :mod:`psssr_fast.video.sandbox`.

    Raises:
        InputError: it does not exist, is empty, is not media, has no video, cannot be decoded, or
            is beyond the limits.
    """
    if sandbox:
        from psssr_fast.video.sandbox import probe_confined

        return probe_confined(path, frame_rate, limits)
    if is_image_source(path):
        return probe_images(path, frame_rate, limits)
    return probe_file(check_readable(path), limits)[0]


def open_reader(
    path: str | Path,
    *,
    allow_damaged: bool = False,
    frame_rate: Fraction = DEFAULT_IMAGE_RATE,
    limits: Limits = DEFAULT_LIMITS,
    sandbox: bool = False,
) -> Reader:
    """A reader for a video file, a folder of PNG frames, or a pattern ``frames/%06d.png``.

    Args:
        path: what to read.
        allow_damaged: keep what can be decoded of a damaged or truncated source, with warnings;
            otherwise reading stops with an error at the first damage.
        frame_rate: frames a second of a folder of PNG frames.
        limits: on what is accepted.
        sandbox: decode in a confined process: the same frames, and what FFmpeg may be made to do
            by a hostile file cannot harm this one; see :mod:`psssr_fast.video.sandbox`.

    Raises:
        InputError: as :func:`probe`.
    """
    if sandbox:
        from psssr_fast.video.sandbox import ConfinedReader

        return ConfinedReader(path, frame_rate, allow_damaged, limits)
    if is_image_source(path):
        return ImageReader(path, frame_rate, allow_damaged, limits)
    return VideoReader(check_readable(path), allow_damaged, limits)


class VideoReader:
    """Frames of a media file: upright RGB, with the file's own timestamps.

    Args:
        path: the file.
        allow_damaged, limits: as for :func:`open_reader`.

    Raises:
        InputError: as :func:`probe`.
    """

    def __init__(
        self, path: Path, allow_damaged: bool = False, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.info, self._orientation = probe_file(path, limits)
        self._path = path
        self._limits = limits
        self._allow_damaged = allow_damaged
        self._container: InputContainer | None = None
        self._decoder: VideoCodecContext | None = None
        info = self.info
        self._times = PresentationTimes(info.time_base, info.average_rate, allow_damaged)
        self._watcher = Watcher(self.info)
        self._damage: Counter[str] = Counter()
        self._index = 0  # of the stream, among those of video
        self._expected_packets = 0  # that the index lists, 0 if there is no full index
        self._packets = 0  # read from the video stream
        self._sound_until: int | None = None  # time of the first damaged frame, ticks
        self._shown = 0  # of these, not hidden by an edit list
        self._decoded = 0
        self._given = 0
        self._contents: Contents | None = None
        self._odd: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """``info.warnings``, what changed on the way, repaired timestamps, and with
        ``allow_damaged`` what was lost."""
        damage = [
            note if times == 1 else f"{note} ({times} times)"
            for note, times in self._damage.items()
        ]
        noticed = (
            *self.info.warnings, *self._watcher.warnings(), *self._times.warnings(), *self._odd
        )  # fmt: skip
        return tuple(dict.fromkeys((*noticed, *damage)))

    def __enter__(self) -> Self:
        self._container = open_media(self._path, self._limits)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._container is not None:
            self._container.close()
            self._container = self._decoder = None

    def __iter__(self) -> Iterator[Frame]:
        if self._container is None:
            raise RuntimeError("use the reader as a context manager: with open_reader(path) as r")
        convert = PixelConverter(self.info.color_used, self.info.codec)
        waiting: Frame | None = None  # for the next one, which ends it
        failure: InputError | None = None
        for picture in self._pictures(self._container):
            try:
                self._limits.check_frames(self._path, self._given + 1)
                self._check_size(picture)
                pts = self._place(picture)
            except InputError as error:
                failure = error
                break
            if waiting is not None:
                yield replace(waiting, duration=pts - waiting.pts)
            self._given += 1
            self._watch(picture)
            waiting = self._frame(picture, pts, convert)
        if waiting is not None:
            yield waiting
        if failure is not None:
            raise failure
        self._finish()

    def _frame(self, picture: av.VideoFrame, pts: int, convert: PixelConverter) -> Frame:
        deep = self.info.bit_depth > 8
        alpha = convert.alpha_of(picture, deep) if self.info.alpha else None
        pixels = convert.to_words(picture) if deep else convert.to_rgb(picture)
        return Frame(
            pixels=self._orientation.apply(pixels),
            pts=pts,
            duration=self._last_duration(pts, picture.duration),
            name=f"frame_{self._given:06d}.png",
            alpha=None if alpha is None else self._orientation.apply(alpha),
        )

    def _watch(self, picture: av.VideoFrame) -> None:
        assert self._decoder is not None
        self._watcher.look(picture, self._given, self._decoder.sample_aspect_ratio)

    def _last_duration(self, pts: int, decoded: int) -> int | None:
        """Ticks that a frame is shown if none follows."""
        if self.info.end_time is not None:
            ticks = round(self.info.end_time / self.info.time_base) - pts
            if ticks > 0:
                return ticks
        return decoded or None

    def _pictures(self, container: InputContainer) -> Iterator[av.VideoFrame]:
        stream = choose_stream(container, self._path, self._limits)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        self._decoder = decoder_of(stream)
        self._index = container.streams.video.index(stream)  # cover pictures come last
        # Counted before reading: demuxers without a full index add to it as they go.
        self._expected_packets = len(stream.index_entries) if self.info.frames_exact else 0
        try:
            for packet in demux(container, stream):
                yield from self._decode(packet)
                if self._damage and not self._allow_damaged:
                    break
        except av.FFmpegError as error:
            self._damage[f"cannot be read further ({error.strerror})"] += 1
        if self._damage and not self._allow_damaged:
            yield from self._drain(self._decoder)

    def _decode(self, packet: "Packet[VideoStream]") -> Iterator[av.VideoFrame]:
        if packet.size:
            self._packets += 1
            self._shown += not packet.is_discard
        if packet.is_corrupt:
            self._damage["a frame is incomplete"] += 1
            if not self._allow_damaged:
                self._sound_until = packet.pts
                return
        try:
            assert self._decoder is not None
            pictures = self._decoder.decode(packet if packet.size else None)
        except av.FFmpegError as error:
            self._damage[f"a frame cannot be decoded ({error.strerror})"] += 1
            self._sound_until = packet.pts
            return
        for picture in pictures:
            if picture.is_corrupt:
                self._damage["a frame is damaged"] += 1
                if not self._allow_damaged:
                    self._sound_until = picture.pts
                    return
            self._decoded += 1
            yield picture

    def _drain(self, decoder: VideoCodecContext) -> Iterator[av.VideoFrame]:
        """Give what the decoder still holds, up to the first frame that is shown after damage."""
        try:
            pictures = decoder.decode(None)
        except av.FFmpegError:
            return  # the damage is known already
        for picture in pictures:
            if picture.is_corrupt or self._is_beyond_damage(picture):
                return
            yield picture

    def _is_beyond_damage(self, picture: av.VideoFrame) -> bool:
        end = self._sound_until
        return end is not None and picture.pts is not None and picture.pts > end

    def _check_size(self, picture: av.VideoFrame) -> None:
        size = (picture.width, picture.height)
        stored = (self.info.stored_width, self.info.stored_height)
        if size != stored:
            raise InputError(
                f"{self._path}: frame {self._given + 1} is {size[0]}x{size[1]}, those before it "
                f"{stored[0]}x{stored[1]}; all must have one size. Split the file there."
            )

    def _place(self, picture: av.VideoFrame) -> int:
        try:
            return self._times.place(picture.pts, picture.duration or None)
        except InputError as error:
            raise InputError(f"{self._path}: frame {self._given + 1}: {error}") from error

    def _finish(self) -> None:
        """Look for losses that raised nothing, and report the first one, unless allowed.

        Raises:
            InputError: the file is damaged or truncated, and ``allow_damaged`` is off.
        """
        missing = missing_bytes(self._path)  # if any, probing has warned already
        if not self._damage or self._allow_damaged:
            self._damage.update(self._silent_losses())
        if self._allow_damaged or not (self._damage or missing):
            return
        total = self.info.frames
        about = "" if self.info.frames_exact else "about "
        of_total = f" of {about}{total}" if total is not None else ""
        what = f"the file is {missing} bytes short" if missing else next(iter(self._damage))
        raise InputError(
            f"{self._path}: {'truncated' if missing else 'damaged'} after frame "
            f"{self._given}{of_total}: {what}. Get a complete copy, or pass --allow-damaged to "
            "keep what can be decoded."
        )

    def _silent_losses(self) -> list[str]:
        losses = []
        unread = self._expected_packets - self._packets
        if unread > 0:
            losses.append(f"{unread} frame(s) that the index lists are not in the file")
        lost = self._shown - self._decoded
        countable = self.info.codec in _FRAME_PER_PACKET and not self.info.interlaced
        if lost > 0 and countable and self.info.container.startswith(("mov", "matroska")):
            losses.append(f"{lost} frame(s) could not be decoded")
        if self.info.container.startswith("matroska") and not missing_bytes(self._path):
            losses += self._unread_blocks()
        return losses

    def _unread_blocks(self) -> list[str]:
        contents = self.count_blocks() if self._contents is None else self._contents
        if contents is None:
            return []
        if contents.odd is not None:
            self._odd = (f"something that no reader knows is skipped, at byte {contents.odd}",)
        unread = contents.frames - self._packets
        losses = [f"{unread} frame(s) that are in the file could not be read"] if unread > 0 else []
        if contents.broken is not None:
            losses.append(
                f"its structure is broken, or cut off, at byte {contents.broken}: frames may be "
                "missing"
            )
        return losses

    def count_blocks(self, beat: Callable[[], None] = lambda: None) -> Contents | None:
        """Count the frames of a Matroska file now instead of after the last one.

        Args:
            beat: called now and then, as it takes long for a large file.
        """
        if self.info.container.startswith("matroska") and not missing_bytes(self._path):
            self._contents = count_frames(self._path, self._index, beat)
        return self._contents
