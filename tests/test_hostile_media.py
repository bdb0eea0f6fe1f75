"""Media that ask for too much: refused before it is given to them."""

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest
from cli_fixtures import Psssr, pictures, write_frames, write_video
from PIL import Image

from psssr_fast.errors import InputError, UsageError
from psssr_fast.video import DEFAULT_LIMITS, Limits, open_reader, probe

BIG = 100 << 20


def png(width: int, height: int) -> bytes:
    """A gray PNG of any size in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", rows),
            chunk(b"IEND", b""),
        ]
    )


def write_streams(path: Path, count: int) -> None:
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("mpeg4", rate=25) for _ in range(count)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for stream in streams:
            output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            output.mux(stream.encode(None))


def write_tagged(path: Path, characters: int) -> None:
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "x" * characters
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        output.mux(stream.encode(None))


def write_gif(path: Path, width: int, height: int) -> None:
    """One pixel on an enormous canvas."""
    Image.new("P", (1, 1)).save(path, "GIF")
    content = bytearray(path.read_bytes())
    struct.pack_into("<HH", content, 6, width, height)
    path.write_bytes(content)


def write_nested(path: Path) -> None:
    """A Matroska file in a Matroska file in ..., as attachments."""
    inner = path.with_name("inner.mkv")
    write_tagged(inner, 10)
    for _ in range(12):
        content = inner.read_bytes()
        with av.open(str(path), "w") as output:
            stream = output.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            for index in range(2):
                name = f"{index}.mkv"
                output.add_attachment(name, "video/x-matroska", content)
            output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            output.mux(stream.encode(None))
        shutil.copy(path, inner)


def write_many_frames(path: Path, frames: int) -> None:
    """A million frames that say "as before", by an index that a few bytes fill."""
    write_video(path.with_name("base.mp4"), 3)
    content = bytearray(path.with_name("base.mp4").read_bytes())
    table = content.index(b"stsz")
    struct.pack_into(">II", content, table + 8, 1, frames)
    for box, offset in ((b"stts", 12), (b"stsc", 16)):
        struct.pack_into(">I", content, content.index(box) + offset, frames)
    path.write_bytes(content)


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "12000.png": (lambda p: p.write_bytes(png(12000, 12000)), "12000x12000 are too large"),
    "12000.mp4": (lambda p: p.write_bytes(png(12000, 12000)), "12000x12000 are too large"),
    "30000.png": (lambda p: p.write_bytes(png(30000, 30000)[:4000]), "30000x30000 are too large"),
    "2139062143.png": (
        lambda p: p.write_bytes(png(8, 8).replace(b"\0\0\0\x08", b"\x7f" * 4)),
        "2139062143x2139062143 are too large",
    ),
    "gif.gif": (lambda p: write_gif(p, 65535, 65535), "--max-pixels"),
    "streams.mkv": (lambda p: write_streams(p, 500), "more than 200 streams"),
    "streams.mp4": (lambda p: write_streams(p, 500), "more than 200 streams"),
    "streams.ts": (lambda p: write_streams(p, 500), "more than 200 streams"),
    "tags.mp4": (lambda p: write_tagged(p, BIG), "bytes of titles and tags"),
    "tags.mov": (lambda p: write_tagged(p, BIG), "bytes of titles and tags"),
    "tags.avi": (lambda p: write_tagged(p, BIG), "bytes of titles and tags"),
    "tags.mkv": (lambda p: write_tagged(p, 15 << 20), "bytes of titles and tags"),
    "index.mp4": (lambda p: write_many_frames(p, 100_000_000), ""),
    "nested.mkv": (write_nested, "0 or 1 frame"),
}  # fmt: skip

TRY = """
import json, sys, time
from psssr_fast.errors import InputError
from psssr_fast.video import open_reader, probe

def peak():  # MiB; ru_maxrss would be that of the process that this one was forked from
    with open("/proc/self/status") as file:
        (line,) = (x for x in file if "VmHWM" in x)
    return int(line.split()[1]) >> 10

start, before, told = time.process_time(), peak(), None
try:
    probe(sys.argv[1])
    with open_reader(sys.argv[1]) as reader:
        told = f"{sum(1 for _ in reader)} frame(s)"
except InputError as error:
    told = str(error)
print(json.dumps([told, time.process_time() - start, peak() - before, peak()]))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_goes_off_nowhere(tmp_path, name):
    make, words = BOMBS[name]
    make(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(tmp_path / name)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told, seconds, more, peak = json.loads(done.stdout)
    assert (words in told and str(tmp_path / name) in told) or "frame(s)" in told, told
    assert "\n" not in told
    if words and words != "0 or 1 frame":
        assert "frame(s)" not in told
    assert seconds < 1.5
    assert more < 130 and peak < 200


def test_limits_say_what_they_got_what_they_allow_and_how_to_raise_them(tmp_path, capsys):
    clip = write_video(tmp_path / "clip.mp4", 5)
    psssr = Psssr(capsys)
    for option, words in (
        (("--max-pixels", 2303), "64x36 are too large: 2304 pixels, and at most 2303 are read"),
        (
            ("--max-frames", 4),
            "5 frames or more, and at most 4 are read. Cut it",
        ),
        (
            ("--max-duration", 0.1),
            "0.2 s long, and at most 0.1 s are read. Cut it",
        ),
    ):
        for verb in ("probe", "upscale"):
            done = psssr(verb, clip, *option)
            assert (done.code, words in done.err) == (3, True), done.err
            assert len(done.err.splitlines()) == 1
    assert psssr("probe", clip, "--max-pixels", 2304, "--max-frames", 5).code == 0
    assert psssr("probe", clip, "--max-pixels", 0).code == 2
    assert psssr("upscale", clip, "--max-frames", "x").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_limits_hold_for_folders_of_pictures(tmp_path):
    folder = write_frames(tmp_path / "frames", 3)
    for limits, words in (
        (Limits(max_pixels=2303), "64x36 are too large"),
        (Limits(max_frames=2), "at most 2"),
        (Limits(max_duration_s=0.1), "0.12 s long"),
    ):
        with pytest.raises(InputError, match=words):
            probe(folder, limits=limits)
        with pytest.raises(InputError, match=words):
            open_reader(folder, limits=limits)


def test_a_frame_too_many_ends_reading_where_no_header_counts(tmp_path):
    clip = write_video(tmp_path / "clip.mkv", 9)
    frames = []
    with (
        pytest.raises(InputError, match="at most 5 are read"),
        open_reader(clip, limits=Limits(max_frames=5)) as reader,
    ):
        frames.extend(reader)
    assert len(frames) == 5
    with open_reader(clip, limits=Limits(max_frames=9)) as reader:
        assert len(list(reader)) == 9


@pytest.mark.parametrize("field", ["max_pixels", "max_streams", "max_frames", "max_duration_s"])
@pytest.mark.parametrize("value", [0, -1, 2**31, float("nan")])
def test_limits_of_nothing_are_refused(field, value):
    option = "--max-duration" if field == "max_duration_s" else "--" + field.replace("_", "-")
    with pytest.raises(UsageError, match=f"{option} must be above 0"):
        replace(DEFAULT_LIMITS, **{field: value})


def test_a_stream_that_grows_beyond_the_limit_is_refused(tmp_path):
    first = write_video(tmp_path / "1.h264", 3, (64, 36)).read_bytes()
    second = write_video(tmp_path / "2.h264", 3, (640, 360)).read_bytes()
    (tmp_path / "grows.h264").write_bytes(first + second)
    with (
        pytest.raises(InputError),
        open_reader(tmp_path / "grows.h264", limits=Limits(max_pixels=5000)) as reader,
    ):
        assert all(frame.pixels.shape == (36, 64, 3) for frame in reader)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif", "ppm"])
@pytest.mark.parametrize("turned", [1, 6])
def test_single_pictures_and_their_exif_are_read(tmp_path, suffix, turned):
    path = tmp_path / f"picture.{suffix}"
    exif = Image.Exif()
    exif[274] = turned  # orientation
    options = {"exif": exif} if suffix in ("jpg", "png", "webp", "tiff") else {}
    Image.fromarray(pictures(1, 64, 32)[0]).save(path, **options)
    with open_reader(path) as reader:
        (frame,) = reader
    assert frame.pixels.shape == (reader.info.height, reader.info.width, 3)
    if suffix in ("jpg", "bmp"):
        assert (frame.pixels.shape[0] == 64) == (turned == 6 and suffix == "jpg")
