"""Odd and damaged videos: every frame that can be decoded, or one line that says why not."""

import dataclasses
import random
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.stream import Disposition
from cli_fixtures import HANGS_AFTER, pictures, write_silence, write_video

from psssr_fast.errors import InputError
from psssr_fast.video import open_reader, probe


@dataclasses.dataclass(frozen=True)
class Video:
    """A video to be made, in plain PyAV."""

    name: str
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    size: tuple[int, int] = (64, 48)
    pts: tuple[int, ...] = tuple(range(8))
    options: tuple[tuple[str, str], ...] = ()
    videos: int = 1
    sounds: tuple[str, ...] = ()
    attachment: bool = False
    chapters: bool = False
    matrix: int = 2
    range: int = 0

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with av.open(str(path), "w") as output:
            streams = [self._video(output) for _ in range(self.videos)]
            sounds = [output.add_stream("aac", rate=48000, layout=layout) for layout in self.sounds]
            if self.attachment:
                output.add_attachment("font.ttf", "font/ttf", bytes(1000))
            if self.chapters:
                output.set_chapters(
                    [{"id": 0, "start": 0, "end": 90, "time_base": Fraction(1, 1000),
                      "metadata": {"title": "x"}}]
                )  # fmt: skip
            for stream in streams:
                for picture, pts in zip(pictures(len(self.pts), *self.size), self.pts, strict=True):
                    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                    frame.pts, frame.time_base = pts, Fraction(1, 25)
                    output.mux(stream.encode(frame))
                output.mux(stream.encode(None))
            for stream in sounds:
                if stream.layout.name == "mono":
                    write_silence(output, stream)
        return path

    def _video(self, output: av.container.OutputContainer) -> av.VideoStream:
        stream = output.add_stream(self.codec, rate=25, options=dict(self.options))
        stream.width, stream.height = self.size
        stream.pix_fmt = self.pixel_format
        stream.codec_context.time_base = Fraction(1, 25)
        stream.codec_context.colorspace = self.matrix
        stream.codec_context.color_range = self.range
        return stream


VIDEOS = (
    Video("one_frame.mp4", pts=(0,)),
    Video("two_frames.mkv", pts=(0, 1)),
    Video("one_pixel.mkv", codec="ffv1", pixel_format="bgr0", size=(1, 1)),
    Video("one_row.mkv", codec="ffv1", pixel_format="yuv420p", size=(65, 1)),
    Video("sixteen.mp4", size=(16, 16)),
    Video("odd.mkv", pixel_format="yuv444p", size=(63, 47)),
    Video("gaps.mp4", pts=(0, 1, 2, 500, 501, 9000)),
    Video("gaps.mkv", pts=(0, 1, 2, 500, 501, 9000)),
    Video("negative.mkv", pts=(-3, -2, -1, 0, 1)),
    Video("negative.mp4", pts=(-3, -2, -1, 0, 1)),
    Video("b_frames.mp4", options=(("bf", "3"), ("b-adapt", "0")), pts=tuple(range(20))),
    Video("b_frames.avi", codec="mpeg4", options=(("bf", "2"),), pts=tuple(range(20))),
    Video("b_frames.ts", codec="mpeg2video", options=(("bf", "2"),), pts=tuple(range(20))),
    Video("interlaced.mp4", options=(("x264-params", "tff=1"),)),
    Video("422.mkv", pixel_format="yuv422p"),
    Video("444.mp4", pixel_format="yuv444p"),
    Video("gray.mkv", codec="ffv1", pixel_format="gray"),
    Video("gray16.mkv", codec="ffv1", pixel_format="gray16le"),
    Video("rgb.mkv", codec="ffv1", pixel_format="bgr0"),
    Video("rgb.mp4", codec="libx264rgb", pixel_format="rgb24"),
    Video("10_bit.mkv", pixel_format="yuv422p10le"),
    Video("12_bit.mkv", codec="libx265", pixel_format="yuv444p12le",
          options=(("x265-params", "log-level=none"),)),
    Video("16_bit.mkv", codec="ffv1", pixel_format="yuv444p16le"),
    Video("full_range.mp4", range=2),
    Video("601.mp4", matrix=6, range=1),
    Video("709.mp4", matrix=1, range=1),
    Video("2020.mp4", matrix=9, range=1, pixel_format="yuv420p10le"),
    Video("alpha.mov", codec="prores_ks", pixel_format="yuva444p10le"),
    Video("alpha.mkv", codec="ffv1", pixel_format="yuva420p"),
    Video("palette.gif", codec="gif", pixel_format="rgb8"),
    Video("two_videos.mkv", videos=2),
    Video("two_videos.mp4", videos=2),
    Video("many_sounds.mp4", sounds=("mono", "mono", "mono")),
    Video("silent_5.1.mkv", sounds=("5.1",)),
    Video("attachment.mkv", attachment=True, chapters=True),
    Video("chapters.mp4", chapters=True),
    Video("flv.flv", codec="flv"),
    Video("mjpeg.avi", codec="mjpeg", pixel_format="yuvj420p"),
    Video("raw.y4m", codec="rawvideo"),
    Video("nut.nut", codec="ffv1"),
)  # fmt: skip


def plain(path: Path) -> list[Fraction | None]:
    """Times of what PyAV alone decodes of the first video that is no cover, up to an error."""
    times: list[Fraction | None] = []
    with av.open(str(path), metadata_errors="replace") as container:
        videos = container.streams.video
        stream = next(s for s in videos if not s.disposition & Disposition.attached_pic)
        stream.thread_type = "SLICE"
        try:
            for frame in container.decode(stream):
                times.append(None if frame.pts is None else frame.pts * frame.time_base)
        except (av.FFmpegError, IndexError):
            return times
    return times


def outcome(path: Path, **options: object) -> tuple[list[Fraction], str]:
    """Times of the frames that are read, and the error that ended reading or ``""``."""
    times: list[Fraction] = []
    begin = time.process_time()
    try:
        probe(path)
        with open_reader(path, **options) as reader:
            times.extend(frame.pts * reader.info.time_base for frame in reader)
        return times, ""
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        assert len(str(error)) > len(str(path)) + 20
        return times, str(error)
    finally:
        assert time.process_time() - begin < 30


@pytest.mark.parametrize("video", VIDEOS, ids=lambda video: video.name)
def test_every_kind_is_read_to_its_last_frame(tmp_path, video):
    path = video.write(tmp_path)
    times, error = outcome(path)
    assert error == ""
    known = plain(path)
    # In an MP4 an edit list hides what is before zero, from FFmpeg as well.
    assert len(times) == (len(known) if video.name == "negative.mp4" else len(video.pts))
    if None not in known and path.suffix != ".ts":
        assert times == known


def cover_only(path: Path) -> None:
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=48000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame(16, 16, "yuvj420p")))
        output.mux(cover.encode(None))
        write_silence(output, sound)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as output:
        write_silence(output, output.add_stream("aac", rate=48000, layout="mono"))


def without_moov(path: Path) -> None:
    whole = write_video(path, 5).read_bytes()
    path.write_bytes(whole[: whole.index(b"moov") - 4])


def header_only(path: Path) -> None:
    whole = write_video(path, 5, faststart=path.suffix == ".mp4").read_bytes()
    path.write_bytes(whole[: whole.index(b"mdat") + 4] if path.suffix == ".mp4" else whole[:400])


def two_sizes(path: Path) -> None:
    parts = [
        write_video(path.with_name(f"{n}.h264"), 4, size)
        for n, size in enumerate([(64, 48), (32, 32)])
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        output.start_encoding()


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty.mp4": lambda p: p.touch(),
    "one_byte.mp4": lambda p: p.write_bytes(b"\0"),
    "zeros.mp4": lambda p: p.write_bytes(bytes(100_000)),
    "ones.mkv": lambda p: p.write_bytes(b"\xff" * 100_000),
    "noise.avi": lambda p: p.write_bytes(random.Random(0).randbytes(100_000)),
    "text.mov": lambda p: p.write_text("not a video\n" * 999),
    "html.mp4": lambda p: p.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "subtitles.srt": lambda p: p.write_text("1\n00:00:00,000 --> 00:00:01,000\nHi\n\n"),
    "sound.m4a": sound_only,
    "sound.mkv": sound_only,
    "cover.mp4": cover_only,
    "no_moov.mp4": without_moov,
    "header.mp4": header_only,
    "header.mkv": header_only,
    "two_sizes.h264": two_sizes,
    "no_frames.mkv": no_frames,
    "no_frames.mp4": no_frames,
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_good_video_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    BROKEN[name](path)
    times, error = outcome(path)
    assert error
    assert len(times) == (4 if name == "two_sizes.h264" else 0)


def sample(folder: Path, name: str) -> Path:
    path = folder / name
    if path.suffix == ".mp4":
        return write_video(path, 24, faststart=True)
    return write_video(path, 24)


@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv", "whole.ts", "whole.avi", "whole.h264"])
def test_cut_at_64_places_nothing_is_lost_in_silence(tmp_path, name):
    whole = sample(tmp_path, name)
    content = whole.read_bytes()
    total = len(plain(whole))
    path = whole.with_name("cut" + whole.suffix)
    for number in range(64):
        path.write_bytes(content[: number * len(content) // 64])
        times, error = outcome(path)
        if error:
            kept, _ = outcome(path, allow_damaged=True)
            assert len(kept) >= len(times)
            continue
        assert len(times) >= len(plain(path))
        # These two say nowhere how long they are: what is there is all there is to know.
        assert len(times) == total or whole.suffix in (".ts", ".h264")


@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv", "whole.ts", "whole.avi"])
def test_flipped_bits_lose_nothing_in_silence(tmp_path, name):
    whole = sample(tmp_path, name)
    content, flips = whole.read_bytes(), random.Random(name)
    path = whole.with_name("flipped" + whole.suffix)
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(flips.choice([1, 4, 64])):
            damaged[flips.randrange(len(damaged))] ^= 1 << flips.randrange(8)
        path.write_bytes(damaged)
        times, error = outcome(path)
        if not error:
            assert len(times) >= len(plain(path))
        outcome(path, allow_damaged=True)


MEASURED = """
import sys
from psssr_fast.cli import main

code = main()
with open("/proc/self/status") as file:
    print([line for line in file if line.startswith("VmHWM")][0].split()[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [("noise.avi", 3), ("no_moov.mp4", 3), ("cover.mp4", 3), ("two_sizes.h264", 3)],
)
def test_the_command_line_ends_soon_and_small(tmp_path, name, code):
    BROKEN[name](tmp_path / name)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "upscale", name, "-s", "1", "--progress", "none"],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_AFTER,
    )  # fmt: skip
    *said, kibibytes = done.stderr.splitlines()
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert len([line for line in said if line.startswith("psssr: error: ")]) == 1
    assert int(kibibytes) < 1 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == before
