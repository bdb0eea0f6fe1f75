"""What probing says about good files, and how it refuses bad ones."""

import json
import socket
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest

from psssr_fast.errors import InputError
from psssr_fast.video import probe
from psssr_fast.video.container import missing_bytes


def test_a_plain_file_is_described(sample):
    info = probe(sample("cfr.mp4"))
    assert (info.kind, info.codec, info.pixel_format, info.bit_depth) == (
        "video",
        "h264",
        "yuv420p",
        8,
    )
    assert (info.width, info.height, info.stored_width, info.stored_height) == (64, 48, 64, 48)
    assert (info.frames, info.frames_exact, info.duration_s) == (24, True, 1.0)
    assert (info.average_rate, info.start_time, info.rotation) == (24, 0, 0)
    assert info.sample_aspect_ratio == 1
    assert [(s.codec, s.language, s.sample_rate, s.channels) for s in info.audio] == [
        ("aac", "eng", 48000, 1)
    ]
    assert (info.interlaced, info.subtitles, info.warnings) == (False, (), ())


def test_every_stream_of_a_matroska_file_is_listed(sample):
    info = probe(sample("two_sounds.mkv"))
    assert [(s.codec, s.language) for s in info.audio] == [("aac", "eng"), ("aac", "deu")]
    assert [(s.codec, s.language) for s in info.subtitles] == [("subrip", "eng")]
    assert (info.frames_exact, info.time_base) == (False, Fraction(1, 1000))
    assert abs(info.frames - 30) <= 1


def test_the_description_becomes_json(sample):
    values = json.loads(json.dumps(probe(sample("two_sounds.mkv")).to_json()))
    assert values["time_base"] == "1/1000"
    assert values["path"].endswith("two_sounds.mkv")
    assert values["color"] == dict.fromkeys(("primaries", "transfer", "matrix", "range"), "unknown")
    assert values["color_used"]["matrix"] == "smpte170m"
    assert values["audio"][1]["language"] == "deu"


def test_a_late_start_is_reported(sample):
    assert probe(sample("late.mp4")).start_time == Fraction(1234567, 90000)


@pytest.mark.parametrize(
    ("size", "tags", "used"),
    [
        ((64, 48), {}, ("smpte170m", "tv")),
        ((64, 576), {}, ("smpte170m", "tv")),
        ((64, 578), {}, ("bt709", "tv")),
        ((64, 48), {"matrix": 1, "range": 2}, ("bt709", "pc")),
        ((64, 578), {"matrix": 6, "range": 1}, ("smpte170m", "tv")),
    ],
)
def test_untagged_colour_is_resolved_as_players_do(tmp_path, make_clip, size, tags, used):
    info = probe(make_clip(tmp_path / "a.mp4", pts=(0,), size=size, **tags))
    names = info.color_used.names()
    assert (names["matrix"], names["range"]) == used
    assert info.color.matrix == tags.get("matrix", 2)


def test_gray_and_rgb_have_no_matrix_to_guess(tmp_path, make_clip):
    gray = probe(make_clip(tmp_path / "g.mkv", pts=(0,), codec="ffv1", pixel_format="gray"))
    rgb = probe(make_clip(tmp_path / "r.mkv", pts=(0,), codec="ffv1", pixel_format="bgr0"))
    assert (gray.color_used.range, rgb.color_used.range, rgb.color_used.matrix) == (2, 2, 0)


def test_rotation_swaps_sides_and_shape_of_pixels(sample):
    info = probe(sample("turned_aspect.mp4"))
    assert (info.width, info.height, info.stored_width, info.stored_height) == (48, 64, 64, 48)
    assert info.rotation == 270  # 90 counter-clockwise
    assert info.sample_aspect_ratio == Fraction(3, 4)


@pytest.mark.parametrize("name", ["ten_bit.mp4", "hdr.mp4"])
def test_ten_bits_are_nothing_to_be_warned_about(sample, name):
    info = probe(sample(name))
    assert (info.bit_depth, info.warnings) == (10, ())


def test_interlaced_video_is_noticed(tmp_path, make_clip):
    options = (("x264-params", "tff=1"), ("preset", "veryfast"))
    info = probe(make_clip(tmp_path / "i.mp4", pts=range(3), options=options))
    assert info.interlaced
    assert "interlaced" in info.warnings[0]


def _write_sound(path, with_cover):
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=48000, layout="mono")
        if with_cover:
            cover = output.add_stream("mjpeg", rate=1)
            cover.width = cover.height = 16
            cover.pix_fmt = "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            output.mux(cover.encode(av.VideoFrame(16, 16, "yuvj420p")))
            output.mux(cover.encode(None))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 48000
        output.mux(stream.encode(sound))
        output.mux(stream.encode(None))


def _png(width, height):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # 1 bit, gray
    pixels = zlib.compress(bytes(height * (1 + width // 8)), 1)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.mp4", b"", "empty file (0 bytes)"),
        ("notes.txt", b"some notes\n" * 100, "not a video"),
        ("notes.mp4", b"some notes\n" * 100, "not a video"),
        ("noise.mkv", bytes(range(256)) * 40, "not a video"),
        ("bomb.png", _png(16000, 8800), "16000x8800 are too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_video_is_refused_in_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        probe(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("with_cover", "words"),
    [(False, "no video stream; found 1 audio stream"), (True, "only a cover picture")],
)
def test_sound_without_video_is_refused(tmp_path, with_cover, words):
    _write_sound(tmp_path / "a.mp4", with_cover)
    with pytest.raises(InputError, match=words):
        probe(tmp_path / "a.mp4")


def test_missing_files_devices_and_folders_without_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        probe(tmp_path / "nothing.mp4")
    with pytest.raises(InputError, match="not a regular file"):
        probe("/dev/null")
    with pytest.raises(InputError, match="no PNG files"):
        probe(tmp_path)


def test_an_mp4_without_its_index_is_called_truncated(tmp_path, sample):
    data = sample("cfr.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"truncated: [0-9]+ bytes are missing"):
        probe(tmp_path / "cut.mp4")


def test_network_addresses_are_refused_without_a_connection():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with pytest.raises(InputError, match="network addresses are not read"):
            probe(f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4")
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.txt"])
@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_playlists_are_not_followed_even_to_good_videos(tmp_path, make_clip, kind, name):
    make_clip(tmp_path / "secret.ts", pts=range(5))
    playlists = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile secret.ts\n",
    }
    (tmp_path / name).write_text(playlists[kind])
    with pytest.raises(InputError, match="not a video"):
        probe(tmp_path / name)


@pytest.mark.parametrize("protocol", ["file:", "concat:", "subfile,,start,0,end,9,,:"])
def test_ffmpeg_protocols_are_only_names_here(sample, protocol):
    with pytest.raises(InputError, match="no such file"):
        probe(f"{protocol}{sample('cfr.mp4')}")


@pytest.mark.parametrize("name", ["cfr.mp4", "faststart.mp4", "gops.mkv", "vp9.webm", "mpeg4.avi"])
@pytest.mark.parametrize("cut", [1 / 10, 1 / 2, 9 / 10])
def test_missing_bytes_are_counted(tmp_path, sample, name, cut):
    data = sample(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data)
    assert missing_bytes(path) == 0
    kept = int(len(data) * cut)
    path.write_bytes(data[:kept])
    found = missing_bytes(path)
    if name == "cfr.mp4":  # its index comes last, and nothing tells of what was to follow the data
        assert 0 < found <= len(data) - kept
    else:
        assert found in (len(data) - kept, len(data) - kept - 1)


def test_a_truncated_file_is_announced_before_it_is_read(tmp_path, sample):
    data = sample("faststart.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:-100])
    assert probe(tmp_path / "cut.mp4").warnings[0].startswith("truncated: the file is 100 bytes")


def test_a_matrix_that_cannot_be_converted_is_refused(tmp_path, make_clip):
    path = make_clip(tmp_path / "a.mp4", pts=(0,), matrix=8)
    with pytest.raises(InputError, match=r"a\.mp4: colour matrix ycgco"):
        probe(path)
