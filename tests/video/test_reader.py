"""Frames as they are read: number, times, pixels, and honesty about damage."""

import random
import re
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import psutil
import pytest

from psssr_fast.errors import InputError
from psssr_fast.video import open_reader
from psssr_fast.video.timing import PresentationTimes


def read_all(path, **options):
    with open_reader(path, **options) as reader:
        return list(reader), reader


def read_until_error(path):
    frames = []
    with pytest.raises(InputError) as caught, open_reader(path) as reader:
        frames.extend(reader)
    return frames, str(caught.value)


@pytest.mark.parametrize(
    "name", ["cfr.mp4", "vfr.mp4", "ntsc.mov", "late.mp4", "gops.mkv", "vp9.webm", "one_frame.mp4"]
)
def test_every_frame_comes_once_with_its_own_time(sample, frame_times, name):
    frames, reader = read_all(sample(name))
    assert [f.pts * reader.info.time_base for f in frames] == frame_times(sample(name))
    assert [f.name for f in frames[:2]] == ["frame_000001.png", "frame_000002.png"][: len(frames)]
    assert reader.warnings == ()


def test_variable_times_are_the_ones_that_were_written(sample):
    frames, reader = read_all(sample("vfr.mp4"))
    ticks = [0, 1001, 2002, 2500, 6000, 6001, 9000, 15000, 15500, 30000]
    assert [f.pts * reader.info.time_base for f in frames] == [Fraction(t, 30000) for t in ticks]


def test_pixels_are_those_that_were_encoded(sample, pictures, psnr):
    frames, _ = read_all(sample("cfr.mp4"))
    for index, frame in enumerate(frames):
        assert (frame.pixels.dtype, frame.pixels.shape) == (np.uint8, (48, 64, 3))
        assert psnr(frame.pixels, pictures.waves(index, 64, 48)) > 38  # crf 10, 4:2:0


def exact_rgb(yuv, kr, kb, full):
    """[3, height, width] YUV to [height, width, 3] RGB by the definition (H.273, 8.3)."""
    y, u, v = yuv.astype(float)
    y, u, v = (y, u - 128, v - 128) if full else (y - 16, u - 128, v - 128)
    y, u, v = (y / 255, u / 255, v / 255) if full else (y / 219, u / 224, v / 224)
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(255 * np.stack([red, green, blue], axis=-1), 0, 255)


@pytest.mark.parametrize(
    ("matrix", "kr", "kb"),
    [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114), (9, 0.2627, 0.0593)],
)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_matrix_and_range_of_the_file_are_honoured(
    tmp_path, store_yuv, matrix, kr, kb, full, codec
):
    yuv = np.random.default_rng(0).integers(16, 235, (3, 48, 64), dtype=np.uint8)
    path = store_yuv(tmp_path / "a.mkv", codec, "yuv444p", yuv, matrix, 2 if full else 1)
    frames, _ = read_all(path)
    assert np.abs(frames[0].pixels - exact_rgb(yuv, kr, kb, full)).max() <= 1


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "ffv1"])
def test_chroma_lies_beside_the_luma_sample(tmp_path, store_yuv, codec):
    # A chroma ramp: v = 96 + k at chroma sample k, which lies at luma column 2k.
    v = np.tile(np.arange(96, 160, dtype=np.uint8), (64, 1))
    planes = [np.full((128, 128), 128, np.uint8), np.full((64, 64), 128, np.uint8), v]
    path = store_yuv(tmp_path / "ramp.mkv", codec, "yuv420p", planes, 1, 2)
    frames, _ = read_all(path)
    red = frames[0].pixels[64, 20:100, 0].astype(float)
    v_read = (red - 128) / (2 * (1 - 0.2126)) + 128
    position = v_read - 96 - np.arange(20, 100) / 2
    assert abs(position.mean()) < 0.05  # MJPEG-style siting would give -0.25


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrors", [(False, False), (True, False), (False, True)])
def test_all_orientations_are_turned_upright(tmp_path, make_clip, pictures, psnr, degrees, mirrors):
    stored = pictures.waves(0, 64, 48)
    stored[:16, :16] = 255  # one corner tells all eight apart
    stored[:8, 16:32] = 0
    path = make_clip(tmp_path / "a.mp4", pts=(0,), pictures=(stored,), rotation=(degrees, *mirrors))
    frames, reader = read_all(path)
    expected = np.rot90(stored, degrees // 90)  # counter-clockwise, as PyAV's angle
    expected = expected[:, ::-1] if mirrors[0] else expected
    expected = expected[::-1] if mirrors[1] else expected
    assert frames[0].pixels.shape == expected.shape == (reader.info.height, reader.info.width, 3)
    assert psnr(frames[0].pixels, expected) > 30
    assert frames[0].pixels.flags.c_contiguous


def test_a_matrix_of_no_right_angle_is_left_alone_with_a_warning(tmp_path, make_clip):
    path = make_clip(tmp_path / "a.mp4", pts=(0,), rotation=(30, False, False))
    frames, reader = read_all(path)
    assert frames[0].pixels.shape == (48, 64, 3)
    assert any("not a right angle" in warning for warning in reader.warnings)


def test_odd_sizes_and_deep_formats_become_rgb(sample, pictures, psnr):
    frames, _ = read_all(sample("odd.mkv"))
    assert frames[4].pixels.shape == (47, 63, 3)
    assert psnr(frames[4].pixels, pictures.waves(4, 63, 47)) > 38
    frames, _ = read_all(sample("ten_bit.mp4"))
    assert psnr(frames[2].pixels, pictures.waves(2, 64, 48).astype(np.uint16) * 257) > 38


@pytest.mark.parametrize("name", ["faststart.mp4", "gops.mkv"])
@pytest.mark.parametrize("cut", [0.2, 0.35, 0.5, 0.7, 0.9, 0.995])
def test_a_truncated_file_gives_its_good_frames_and_then_an_error(tmp_path, sample, name, cut):
    whole, _ = read_all(sample(name))
    data = sample(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * cut)])
    frames, message = read_until_error(path)
    assert 0 < len(frames) <= len(whole)
    assert len(frames) == len(whole) or cut < 0.99
    originals = {frame.pts: frame.pixels for frame in whole}
    assert all(np.array_equal(frame.pixels, originals[frame.pts]) for frame in frames)
    about = "" if name.endswith("mp4") else "about "
    total = len(whole) if name.endswith("mp4") else len(whole) + 1  # Matroska only has a duration
    assert f"{name}: truncated after frame {len(frames)} of {about}{total}: the file is" in message

    kept, reader = read_all(path, allow_damaged=True)
    assert len(kept) - len(frames) in (0, 1)  # the picture that was cut
    assert reader.warnings[0].startswith("truncated: the file is")


@pytest.mark.parametrize("name", ["faststart.mp4", "gops.mkv"])
@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_never_lose_a_frame_silently(tmp_path, sample, name, seed):
    whole, _ = read_all(sample(name))
    data = bytearray(sample(name).read_bytes())
    flips = random.Random(seed)
    for _ in range(20):
        data[flips.randrange(len(data) // 3, len(data) * 3 // 4)] ^= 1 << flips.randrange(8)
    path = tmp_path / name
    path.write_bytes(data)
    frames = []
    try:
        with open_reader(path) as reader:
            frames.extend(reader)
        assert len(frames) == len(whole) or any("missing" in note for note in reader.warnings)
    except InputError as error:
        assert re.search(rf"after frame {len(frames)} of|timestamps jump back", str(error))
    kept, reader = read_all(path, allow_damaged=True)
    assert len(kept) == len(whole) or reader.warnings


def test_a_file_with_a_hole_is_given_up_to_the_hole(tmp_path, sample):
    whole, _ = read_all(sample("faststart.mp4"))
    data = bytearray(sample("faststart.mp4").read_bytes())
    hole = len(data) // 2
    data[hole : hole + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(data)
    frames, message = read_until_error(tmp_path / "a.mp4")
    assert f"damaged after frame {len(frames)} of 48" in message
    assert 0 < len(frames) < 30  # what follows is good again from the next key frame, 36, on
    originals = {frame.pts: frame.pixels for frame in whole}
    assert all(np.array_equal(frame.pixels, originals[frame.pts]) for frame in frames)
    kept, reader = read_all(tmp_path / "a.mp4", allow_damaged=True)
    assert kept[-1].pts == whole[-1].pts
    assert reader.warnings


def test_frames_that_only_the_index_knows_are_missed(tmp_path, sample):
    with av.open(str(sample("faststart.mp4"))) as container:
        cut = container.streams.video[0].index_entries[30].pos  # between two frames
    data = bytearray(sample("faststart.mp4").read_bytes())
    box = data.index(b"mdat") - 4
    data[box : box + 4] = bytes(4)  # a size of 0: up to the end of the file, wherever that is
    (tmp_path / "a.mp4").write_bytes(data[:cut])
    frames, message = read_until_error(tmp_path / "a.mp4")
    assert len(frames) == 30
    assert "damaged after frame 30 of 48: 18 frame(s) that the index lists" in message


def test_frames_that_the_decoder_leaves_out_are_missed(tmp_path, sample):
    path = tmp_path / "headless.mkv"
    with av.open(str(sample("faststart.mp4"))) as container, av.open(str(path), "w") as output:
        target = output.add_stream_from_template(container.streams.video[0], opaque=True)
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets[1:]:  # without the key frame that the next eleven need
            packet.stream = target
            output.mux(packet)
    frames, message = read_until_error(path)
    lost = len(packets) - 1 - len(frames)
    assert lost > 5
    assert f"damaged after frame {len(frames)} of about 48: {lost} frame(s) could not" in message


def test_names_that_look_like_protocols_are_files(tmp_path, sample, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "concat:a.mp4").write_bytes(sample("one_frame.mp4").read_bytes())
    frames, _ = read_all("concat:a.mp4")
    assert len(frames) == 1


def test_titles_in_an_unknown_encoding_do_not_stop_reading(tmp_path, make_clip):
    path = make_clip(tmp_path / "a.mp4", pts=(0,), metadata=(("title", "Zoe"),))
    path.write_bytes(path.read_bytes().replace(b"Zoe", b"Zo\xeb"))  # Latin-1
    frames, _ = read_all(path)
    assert len(frames) == 1


def test_a_change_of_frame_size_is_refused_with_the_frame_number(tmp_path, make_clip):
    first = make_clip(tmp_path / "1.h264", pts=range(3), options=(("bf", "0"),))
    second = make_clip(tmp_path / "2.h264", pts=range(3), size=(80, 48), options=(("bf", "0"),))
    joined = tmp_path / "joined.h264"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    frames, message = read_until_error(joined)
    assert len(frames) == 3
    assert "frame 4 is 80x48, those before it 64x48" in message


def test_frames_without_times_are_timed_by_the_rate_with_a_warning(tmp_path, make_clip):
    path = make_clip(tmp_path / "raw.h264", pts=range(6), time_base=Fraction(1, 25))
    frames, reader = read_all(path)
    times = [frame.pts * reader.info.time_base for frame in frames]
    assert len(frames) == 6
    assert [b - a for a, b in pairwise(times)] == [Fraction(1, 25)] * 5
    assert any("without timestamp" in warning for warning in reader.warnings)


def test_repeated_times_are_moved_by_one_tick_and_longer_jumps_back_refused():
    times = PresentationTimes(Fraction(1, 1000), Fraction(25))
    given = [0, 40, 40, 80, 79, 120, None, 200]
    assert [times.place(pts, 40) for pts in given] == [0, 40, 41, 80, 81, 120, 160, 200]
    assert [note[:10] for note in times.warnings()] == ["1 frame(s)", "2 frame(s)"]
    with pytest.raises(InputError, match=r"jump back by 1\.100 s to -0\.900 s"):
        times.place(-900, 40)


def test_a_gap_in_steady_times_is_said():
    def notes(*given):
        times = PresentationTimes(Fraction(1, 1000), None)
        assert [times.place(pts, 33) for pts in given] == list(given)
        return times.warnings()

    steady = [round(33.4 * i) for i in range(12)]
    assert notes(*steady) == []
    later = steady[-1] + 33 * 9
    assert notes(*steady, later, later + 33) == [
        "8 frame(s) may be missing: their steady times have gaps"
    ]
    # One tick a frame, as AVI counts them.
    ticks = PresentationTimes(Fraction(1, 25), Fraction(25))
    assert [ticks.place(pts, 1) for pts in (*range(12), 14, 15)] == [*range(12), 14, 15]
    assert ticks.warnings() == ["2 frame(s) may be missing: their steady times have gaps"]
    assert notes(*steady[:6], 600, 700, 1500, 1533) == []  # of a variable rate
    assert notes(*steady[:10], *range(400, 900, 50)) == []  # of another one from here on


def test_in_a_damaged_file_a_long_jump_back_is_timed_by_the_frame_rate():
    times = PresentationTimes(Fraction(1, 1000), Fraction(25), allow_jumps=True)
    given = [0, 40, 17_224, 880, 920, 18_000]
    placed = [times.place(pts, 40) for pts in given]
    assert placed == [0, 40, 17_224, 17_264, 17_304, 18_000]
    (note,) = times.warnings()
    assert note.startswith(
        "2 frame(s) with a time long past: shown at the frame rate, up to 16.4 s"
    )
    bad = PresentationTimes(Fraction(1, 1000), Fraction(25), allow_jumps=True)
    assert [bad.place(5000, 5_000_000), bad.place(40, -9), bad.place(80, 40)] == [5000, 5040, 5080]


def test_repeated_times_of_a_file_keep_the_order_of_frames(tmp_path, make_clip):
    # Frames of an intra-only codec come out in the order in which they are stored.
    source = make_clip(tmp_path / "a.mkv", pts=range(4), codec="ffv1", options=())
    path = tmp_path / "repeated.mkv"
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        target = output.add_stream_from_template(container.streams.video[0], opaque=True)
        packets = [packet for packet in container.demux() if packet.size]
        for packet, time in zip(packets, (0, 40, 40, 80), strict=True):
            packet.pts = packet.dts = time
            packet.stream = target
            output.mux(packet)
    frames, reader = read_all(path)
    assert [frame.pts for frame in frames] == [0, 40, 41, 80]
    assert any("moved by a tick" in warning for warning in reader.warnings)


def test_memory_does_not_grow_with_the_length(tmp_path, make_clip, pictures):
    picture = pictures.waves(0, 160, 90)
    count = 2000
    path = make_clip(
        tmp_path / "long.mp4", pts=range(count), size=(160, 90), pictures=(picture,) * count,
        options=(("preset", "ultrafast"), ("crf", "30")),
    )  # fmt: skip
    process = psutil.Process()
    with open_reader(path) as reader:
        frames = iter(reader)
        for _ in range(200):
            next(frames)
        begin = process.memory_info().rss
        rest = sum(1 for _ in frames)
    assert rest == count - 200
    assert process.memory_info().rss - begin < 32 << 20  # all frames together are 86 MB


def test_a_reader_needs_its_with_block(sample):
    with pytest.raises(RuntimeError, match="context manager"):
        next(iter(open_reader(sample("cfr.mp4"))))
