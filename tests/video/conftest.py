"""Small videos made on the spot, and what the tests look at in them."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import OutputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation
from job_fixtures import open_job

from psssr_fast.video import EncoderSettings, open_reader

SAMPLE_RATE = 48000
SOUND_FORMATS = {  # of the encoder: name, type, full scale
    "aac": ("fltp", np.float32, 1),
    "libopus": ("flt", np.float32, 1),
    "flac": ("s16", np.int16, 32767),
}
SWSCALE_MATRIX = {1: 1, 5: 5, 6: 5, 9: 9}
ACCURATE = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


@dataclass(frozen=True)
class Clip:
    """A video to be made: smooth moving waves, unless ``pictures`` are given."""

    pts: Sequence[int] = tuple(range(24))
    time_base: Fraction = Fraction(1, 24)
    rate: Fraction = Fraction(24)
    size: tuple[int, int] = (64, 48)  # width, height
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = (("crf", "10"), ("preset", "veryfast"))
    container_options: tuple[tuple[str, str], ...] = ()
    pictures: tuple[np.ndarray, ...] = ()  # [height, width, 3 or 4] uint8 or uint16
    duration: int = 0  # ticks of every frame; 0 leaves it to the muxer
    matrix: int = 2
    range: int = 0
    primaries: int = 2
    transfer: int = 2
    aspect: Fraction = Fraction(1)
    rotation: tuple[float, bool, bool] | None = None  # degrees counter-clockwise, mirrors
    audio: tuple[str, ...] = ()  # one stream for each language
    sound: str = "aac"
    subtitles: tuple[tuple[int, int, str], ...] = ()  # start ms, length ms, text
    attachments: tuple[tuple[str, bytes], ...] = ()
    chapters: tuple[tuple[int, int, str], ...] = ()  # start ms, end ms, title
    metadata: tuple[tuple[str, str], ...] = field(default=())


def waves(index: int, width: int, height: int) -> np.ndarray:
    """A smooth RGB picture that moves with ``index``."""
    y, x = np.mgrid[0:height, 0:width]
    red = 128 + 80 * np.sin((x + 3 * index) / 17)
    green = 128 + 80 * np.sin((y - 2 * index) / 13)
    blue = 128 + 60 * np.sin((x + y + 5 * index) / 23)
    return np.rint(np.stack([red, green, blue], axis=-1)).astype(np.uint8)


def color_bars(width: int, height: int) -> np.ndarray:
    """Eight bars of 75 % colour, each as wide as the others."""
    bars = [(i >> 1 & 1, i >> 2 & 1, i & 1) for i in range(7, -1, -1)]
    row = np.repeat(np.array(bars, np.uint8) * 191, width // 8, axis=0)
    return np.repeat(row[None], height, axis=0)


def write_clip(path: Path, clip: Clip) -> Path:
    """Encode and mux a clip; the same clip gives the same frames, bit for bit."""
    options = dict(clip.options)
    if clip.codec == "libx264":  # whose macroblock tree reads memory that nobody has written
        options.setdefault("mbtree", "0")
    with av.open(str(path), "w", container_options=dict(clip.container_options)) as output:
        video = output.add_stream(clip.codec, rate=clip.rate, options=options)
        context = video.codec_context
        context.width, context.height = clip.size
        context.pix_fmt = clip.pixel_format
        context.time_base = video.time_base = clip.time_base
        context.sample_aspect_ratio = clip.aspect
        context.colorspace, context.color_range = clip.matrix, clip.range
        context.color_primaries, context.color_trc = clip.primaries, clip.transfer
        if clip.duration:
            context.flags |= av.codec.context.Flags.frame_duration
        if clip.rotation is not None:
            video.set_display_rotation(*clip.rotation)
        add_tracks = [_add_sound(output, clip.sound, language) for language in clip.audio]
        add_tracks += [_add_subtitles(output, clip.subtitles)] if clip.subtitles else []
        for name, data in clip.attachments:
            output.add_attachment(name, "font/ttf", data)
        _describe(output, clip)
        for index, pts in enumerate(clip.pts):
            output.mux(video.encode(_picture(clip, index, pts)))
        output.mux(video.encode(None))
        end = float(clip.pts[-1] * clip.time_base + 1 / clip.rate)
        for add in add_tracks:
            add(end)
    return path


def _picture(clip: Clip, index: int, pts: int) -> av.VideoFrame:
    pixels = clip.pictures[index] if clip.pictures else waves(index, *clip.size)
    kinds = {"uint8": ("rgb24", "rgba"), "uint16": ("rgb48le", "rgba64le")}
    kind = kinds[pixels.dtype.name][pixels.shape[2] - 3]
    picture = av.VideoFrame.from_ndarray(pixels, format=kind).reformat(
        format=clip.pixel_format,
        dst_colorspace=SWSCALE_MATRIX.get(clip.matrix, 5),
        dst_color_range=clip.range or 1,
        interpolation=ACCURATE,
    )
    picture.pts, picture.time_base, picture.duration = pts, clip.time_base, clip.duration
    return picture


def _describe(output: OutputContainer, clip: Clip) -> None:
    output.metadata.update(dict(clip.metadata))
    output.set_chapters(
        [
            {
                "id": number,
                "start": start,
                "end": end,
                "time_base": Fraction(1, 1000),
                "metadata": {"title": title},
            }
            for number, (start, end, title) in enumerate(clip.chapters)
        ]
    )


def _add_sound(output: OutputContainer, codec: str, language: str) -> Callable[[float], None]:
    stream = output.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
    stream.metadata["language"] = language
    if language == "deu":
        stream.disposition = Disposition.comment
    pitch = 440 + 10 * len(output.streams)

    def add(seconds: float) -> None:
        for start in range(0, int(seconds * SAMPLE_RATE), 960):
            times = np.arange(start, start + 960) / SAMPLE_RATE
            tone = 0.3 * np.sin(2 * np.pi * pitch * times)[None]
            form, dtype, peak = SOUND_FORMATS[codec]
            sound = av.AudioFrame.from_ndarray((peak * tone).astype(dtype), form, "mono")
            sound.sample_rate, sound.pts = SAMPLE_RATE, start
            sound.time_base = Fraction(1, SAMPLE_RATE)
            output.mux(stream.encode(sound))
        output.mux(stream.encode(None))

    return add


def _add_subtitles(
    output: OutputContainer, lines: Iterable[tuple[int, int, str]]
) -> Callable[[float], None]:
    stream = output.add_mux_stream("subrip")
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = "eng"

    def add(seconds: float) -> None:
        for start, length, text in lines:
            packet = av.Packet(text.encode())
            packet.pts = packet.dts = start
            packet.duration, packet.time_base, packet.stream = length, Fraction(1, 1000), stream
            output.mux(packet)

    return add


SAMPLES: dict[str, Clip] = {
    "cfr.mp4": Clip(audio=("eng",)),
    "vfr.mp4": Clip(
        pts=(0, 1001, 2002, 2500, 6000, 6001, 9000, 15000, 15500, 30000),
        time_base=Fraction(1, 30000),
        rate=Fraction(30),
        audio=("eng",),
    ),
    "ntsc.mov": Clip(
        pts=[1001 * i for i in range(20)], time_base=Fraction(1, 30000), rate=Fraction(30000, 1001)
    ),
    "late.mp4": Clip(
        pts=[1234567 + 3003 * i for i in range(12)],
        time_base=Fraction(1, 90000),
        rate=Fraction(30000, 1001),
        container_options=(("movie_timescale", "90000"),),
        audio=("eng",),
    ),
    "two_sounds.mkv": Clip(
        pts=[40 * i for i in range(30)],
        time_base=Fraction(1, 1000),
        rate=Fraction(25),
        audio=("eng", "deu"),
        subtitles=((0, 200, "one"), (300, 300, "two"), (900, 250, "three")),
        attachments=(("font.ttf", b"FONT" * 9),),
        chapters=((0, 500, "first"), (500, 1200, "second")),
        metadata=(("title", "A film"), ("artist", "Somebody")),
    ),
    "faststart.mp4": Clip(
        pts=range(48),
        audio=("eng",),
        options=(("crf", "10"), ("preset", "veryfast"), ("g", "12")),
        container_options=(("movflags", "+faststart"),),
    ),
    "gops.mkv": Clip(
        pts=[40 * i for i in range(30)],
        time_base=Fraction(1, 1000),
        rate=Fraction(25),
        audio=("eng",),
        options=(("crf", "10"), ("preset", "veryfast"), ("g", "10")),
    ),
    "aspect.mp4": Clip(pts=range(4), aspect=Fraction(4, 3)),
    "turned_aspect.mp4": Clip(pts=range(3), aspect=Fraction(4, 3), rotation=(90, False, False)),
    "one_frame.mp4": Clip(pts=(0,)),
    "odd.mkv": Clip(pts=range(5), size=(63, 47), pixel_format="yuv444p", time_base=Fraction(1, 25)),
    "ten_bit.mp4": Clip(pts=range(3), pixel_format="yuv420p10le"),
    "hdr.mp4": Clip(
        pts=range(3), pixel_format="yuv420p10le", matrix=9, range=1, primaries=9, transfer=16
    ),
    "vp9.webm": Clip(
        pts=[40 * i for i in range(10)],
        time_base=Fraction(1, 1000),
        rate=Fraction(25),
        codec="libvpx-vp9",
        options=(("crf", "10"), ("b", "0"), ("deadline", "realtime"), ("cpu-used", "8")),
        audio=("eng",),
        sound="libopus",
    ),
    "flac.mkv": Clip(
        pts=range(12), time_base=Fraction(1, 25), rate=Fraction(25), audio=("eng",), sound="flac"
    ),
    "mpeg4.avi": Clip(
        pts=range(12), time_base=Fraction(1, 25), rate=Fraction(25), codec="mpeg4", options=()
    ),
}


@dataclass(frozen=True)
class Track:
    """What a demuxer finds of one stream: (pts, dts, duration) in seconds and payload digests."""

    kind: str
    times: tuple[tuple[Fraction, Fraction | None, Fraction], ...]
    digests: tuple[str, ...]
    metadata: dict[str, str]

    @property
    def pts(self) -> list[Fraction]:
        return [pts for pts, _, _ in self.times]

    @property
    def end(self) -> Fraction:
        return max(pts + duration for pts, _, duration in self.times)


def _store_yuv(
    path: Path,
    codec: str,
    pixel_format: str,
    planes: Sequence[np.ndarray],
    matrix: int,
    color_range: int,
) -> Path:
    """One frame, stored without loss, with exactly these planes."""
    lossless = {
        "libx264": {"qp": "0"},
        "libx265": {"x265-params": "lossless=1:bframes=0:log-level=none"},  # or no dts
        "libvpx-vp9": {"lossless": "1"},
        "ffv1": {},
    }
    height, width = planes[0].shape
    picture = av.VideoFrame(width, height, pixel_format)
    for target, plane in zip(picture.planes, planes, strict=True):
        rows = np.zeros((plane.shape[0], target.line_size), np.uint8)
        rows[:, : plane.shape[1]] = plane
        target.update(rows)
    picture.colorspace, picture.color_range = matrix, color_range
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=lossless[codec])
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, color_range
        output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def _demux(path: Path) -> list[Track]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        return [
            Track(
                stream.type,
                tuple(
                    (
                        p.pts * p.time_base,
                        None if p.dts is None else p.dts * p.time_base,
                        (p.duration or 0) * p.time_base,
                    )
                    for p in packets
                    if p.stream_index == stream.index
                ),
                tuple(
                    hashlib.sha256(bytes(p)).hexdigest()
                    for p in packets
                    if p.stream_index == stream.index
                ),
                dict(stream.metadata),
            )
            for stream in container.streams
        ]


def _frame_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def _transcode(
    source: Path, target: Path, encoder: EncoderSettings | None = None, enlarge: int = 1
) -> tuple[str, ...]:
    """Read, repeat pixels, write; return the warnings."""
    with open_reader(source) as reader:
        size = reader.info.width * enlarge, reader.info.height * enlarge
        with open_job(target, reader, size, encoder) as job:
            for frame in job.frames():
                pixels = frame.pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
                job.write(frame.with_pixels(pixels))
            job.finish()
    return job.warnings


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``sample("cfr.mp4")``: the path of a sample, made when first asked for."""
    folder = tmp_path_factory.mktemp("samples")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_clip(path, SAMPLES[name])

    return get


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """``make_clip(path, pts=..., ...)``: a video with the fields of ``Clip``."""
    return lambda path, **fields: write_clip(path, Clip(**fields))


@pytest.fixture(scope="session")
def store_yuv() -> Callable[..., Path]:
    """``store_yuv(path, codec, pixel_format, planes, matrix, range)``: one lossless frame."""
    return _store_yuv


@pytest.fixture(scope="session")
def demux() -> Callable[[Path], list[Track]]:
    """The tracks of a file."""
    return _demux


@pytest.fixture(scope="session")
def frame_times() -> Callable[[Path], list[Fraction]]:
    """Presentation times of the decoded frames, seconds, by PyAV alone."""
    return _frame_times


@pytest.fixture(scope="session")
def transcode() -> Callable[..., tuple[str, ...]]:
    """Through our reader and a job."""
    return _transcode


@pytest.fixture(scope="session")
def pictures() -> type:
    """The generators of test pictures."""
    made = {"waves": staticmethod(waves), "color_bars": staticmethod(color_bars)}
    return type("Pictures", (), made)


@pytest.fixture(scope="session")
def psnr() -> Callable[[np.ndarray, np.ndarray], float]:
    """Peak signal-to-noise ratio of 8-bit or 16-bit arrays, dB; infinite if they are equal."""

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        assert a.dtype == b.dtype
        peak = np.iinfo(a.dtype).max if a.dtype.kind == "u" else 255
        error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
        return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))

    return measure
