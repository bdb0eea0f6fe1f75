"""Folders of PNG frames: lossless in, lossless out, same names."""

from fractions import Fraction

import av
import numpy as np
import pytest
from job_fixtures import open_job

from psssr_fast.errors import InputError, OutputError, UsageError
from psssr_fast.video import Frame, check_output, is_image_output, open_reader, probe
from psssr_fast.video.image_writer import ImageWriter


def write_png(path, pixels, pixel_format="rgb24"):
    """Encode an array with PyAV alone."""
    picture = av.VideoFrame.from_ndarray(pixels, format=pixel_format)
    context = av.video.codeccontext.VideoCodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = picture.width, picture.height, pixel_format
    context.time_base = Fraction(1)
    path.write_bytes(b"".join(bytes(packet) for packet in context.encode(picture)))


def read_png(path):
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.fixture
def noise():
    generator = np.random.default_rng(0)
    return lambda *shape, dtype=np.uint8: generator.integers(
        0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True
    )


@pytest.fixture
def folder(tmp_path, noise):
    """Twelve frames, named so that plain sorting would put them in the wrong order."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(1, 13):
        write_png(frames / f"shot{number}.png", noise(30, 41, 3))
    (frames / "notes.txt").write_text("not a frame")
    return frames


def test_frames_come_in_natural_order_under_their_names(folder):
    with open_reader(folder) as reader:
        frames = list(reader)
    assert [frame.name for frame in frames] == [f"shot{n}.png" for n in range(1, 13)]
    assert [(frame.pts, frame.duration) for frame in frames] == [(n, 1) for n in range(12)]
    for frame in frames:
        assert np.array_equal(frame.pixels, read_png(folder / frame.name))


def test_a_folder_is_described(folder):
    info = probe(folder, frame_rate=Fraction(24000, 1001))
    assert (info.kind, info.codec, info.width, info.height) == ("images", "png", 41, 30)
    assert (info.frames, info.frames_exact, info.bit_depth) == (12, True, 8)
    assert (info.average_rate, info.time_base) == (Fraction(24000, 1001), Fraction(1001, 24000))
    assert info.warnings == ()


@pytest.mark.parametrize("ending", ["out", "out/", "out.v2/"])
def test_png_to_png_is_lossless_bit_for_bit(tmp_path, folder, transcode, ending):
    assert transcode(folder, f"{tmp_path}/{ending}") == ()
    output = tmp_path / ending
    names = sorted(path.name for path in folder.glob("*.png"))
    assert sorted(path.name for path in output.iterdir()) == names
    for name in names:
        assert np.array_equal(read_png(output / name), read_png(folder / name))


@pytest.mark.parametrize(
    ("pixel_format", "shape", "expected"),
    [
        ("gray", (30, 41), lambda a: np.repeat(a[..., None], 3, axis=2)),
        ("rgba", (30, 41, 4), lambda a: a[..., :3]),
        ("rgb24", (30, 41, 3), lambda a: a),
    ],
)
def test_eight_bit_kinds_are_read_exactly(tmp_path, noise, pixel_format, shape, expected):
    pixels = noise(*shape)
    write_png(tmp_path / "a.png", pixels, pixel_format)
    with open_reader(tmp_path) as reader:
        (frame,) = reader
    assert np.array_equal(frame.pixels, expected(pixels))
    if pixel_format == "rgba":
        assert np.array_equal(frame.alpha, pixels[..., 3])
    assert (frame.alpha is not None, reader.info.alpha) == (pixel_format == "rgba",) * 2
    assert reader.warnings == ()


def test_palettes_are_read_exactly(tmp_path, noise):
    indices, palette = noise(30, 41), noise(256, 4)
    palette[:, 0] = 255  # alpha comes first
    picture = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
    context = av.video.codeccontext.VideoCodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = 41, 30, "pal8"
    context.time_base = Fraction(1)
    (tmp_path / "a.png").write_bytes(b"".join(bytes(p) for p in context.encode(picture)))
    with open_reader(tmp_path) as reader:
        (frame,) = reader
    assert np.array_equal(frame.pixels, palette[indices][..., 1:])


@pytest.mark.parametrize(("pixel_format", "channels"), [("rgb48be", 3), ("rgba64be", 4)])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, noise, transcode, pixel_format, channels):
    pixels = noise(30, 41, channels, dtype=np.uint16)
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_png(source / "a.png", pixels, pixel_format)
    with open_reader(source) as reader:
        (frame,) = reader
    assert reader.info.bit_depth == 16
    assert transcode(source, output) == ()
    assert np.array_equal(frame.pixels, pixels[..., :3])
    with av.open(str(output / "a.png")) as container:
        picture = next(container.decode(video=0))
    assert picture.format.name == pixel_format
    assert np.array_equal(picture.to_ndarray(), pixels)


def test_gray_of_sixteen_bits_is_read_exactly(tmp_path, noise):
    pixels = noise(30, 41, dtype=np.uint16)
    write_png(tmp_path / "a.png", pixels, "gray16be")
    with open_reader(tmp_path) as reader:
        (frame,) = reader
    assert np.array_equal(frame.pixels, np.repeat(pixels[..., None], 3, axis=2))


def test_the_deepest_picture_decides_for_all(tmp_path, noise):
    shallow, deep = noise(8, 9, 3), noise(8, 9, 4, dtype=np.uint16)
    write_png(tmp_path / "1.png", shallow)
    write_png(tmp_path / "2.png", deep, "rgba64be")
    with open_reader(tmp_path) as reader:
        first, second = reader
    assert (reader.info.bit_depth, reader.info.alpha) == (16, True)
    assert np.array_equal(first.pixels, shallow.astype(np.uint16) * 257)
    assert np.array_equal(second.pixels, deep[..., :3])
    assert first.alpha is None
    assert np.array_equal(second.alpha, deep[..., 3])


def test_a_pattern_reads_numbered_frames(folder):
    with open_reader(folder / "shot%d.png") as reader:
        assert [frame.name for frame in reader] == [f"shot{n}.png" for n in range(1, 13)]
    assert probe(folder / "shot%02d.png").frames == 3  # 10, 11, 12
    (folder / "shot7.png").unlink()
    with pytest.raises(InputError, match="frame 7 is missing, but 12 exists"):
        probe(folder / "shot%d.png")
    with pytest.raises(InputError, match="no file matches"):
        probe(folder / "take%d.png")


def test_frames_of_another_size_are_refused_by_name(folder, noise):
    write_png(folder / "shot5.png", noise(30, 42, 3))
    frames = []
    with (
        pytest.raises(InputError, match=r"shot5\.png: 42x30, but shot1\.png is 41x30"),
        open_reader(folder) as reader,
    ):
        frames.extend(reader)
    assert len(frames) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_picture_is_refused_by_name_unless_allowed(folder, damage):
    file = folder / "shot5.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    broken = {"cut": data[: len(data) // 2], "flip": data, "empty": b"", "text": b"not a picture"}
    file.write_bytes(broken[damage])
    with (
        pytest.raises(InputError, match=r"shot5\.png: not a PNG picture"),
        open_reader(folder) as reader,
    ):
        list(reader)
    with open_reader(folder, allow_damaged=True) as reader:
        names = [frame.name for frame in reader]
    assert names == [f"shot{n}.png" for n in range(1, 13) if n != 5]
    assert "left out" in reader.warnings[0]


def test_no_flipped_byte_gives_a_wrong_picture(tmp_path, noise):
    file = tmp_path / "a.png"
    write_png(file, noise(6, 5, 3))
    data, original = file.read_bytes(), read_png(file)
    refused = 0
    for position in range(8, len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :])
        try:
            with open_reader(tmp_path) as reader:
                (frame,) = reader
        except InputError:
            refused += 1
        else:
            assert np.array_equal(frame.pixels, original), position
    assert refused > len(data) / 2


def test_pictures_become_a_video_at_the_given_rate(tmp_path, folder, frame_times):
    with (
        open_reader(folder, frame_rate=Fraction(30000, 1001)) as reader,
        open_job(tmp_path / "out.mp4", reader, (41, 30)) as job,
    ):
        for frame in job.frames():
            job.write(frame)
        job.finish()
    assert frame_times(tmp_path / "out.mp4") == [Fraction(1001 * n, 30000) for n in range(12)]
    assert probe(tmp_path / "out.mp4").color.names()["matrix"] == "bt709"


def test_a_video_becomes_numbered_pictures(tmp_path, sample, transcode):
    transcode(sample("gops.mkv"), tmp_path / "out", enlarge=2)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"frame_{n:06d}.png" for n in range(1, 31)]
    assert read_png(tmp_path / "out" / names[0]).shape == (96, 128, 3)


def test_existing_pictures_are_replaced_only_when_asked(tmp_path, folder):
    output = tmp_path / "out"
    frame = Frame(np.zeros((30, 41, 3), np.uint8), 0, 1, "a.png")
    with ImageWriter(output, 41, 30, overwrite=False) as writer:
        writer.write(frame)
        with pytest.raises(OutputError, match=r"a\.png: exists already"):
            writer.write(frame)
    with pytest.raises(OutputError, match="holds PNG files already"):
        check_output(output, folder)
    check_output(output, folder, overwrite=True)
    with ImageWriter(output, 41, 30, overwrite=True) as writer:
        writer.write(frame)
    with pytest.raises(UsageError, match="the output is the input"):
        check_output(folder, folder, overwrite=True)


def test_pictures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    frame = Frame(np.zeros((30, 41, 3), np.uint8), 0, 1, "a.png")
    with ImageWriter(tmp_path / "out", 41, 30, overwrite=False) as writer:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"a\.png: cannot be written: No space left"):
            writer.write(frame)
    assert list((tmp_path / "out").iterdir()) == []


def test_frames_that_do_not_fit_the_output_are_refused(tmp_path):
    with (
        pytest.raises(UsageError, match="output of"),
        ImageWriter(tmp_path / "out", 82, 60, overwrite=False) as writer,
    ):
        writer.write(Frame(np.zeros((30, 41, 3), np.uint8), 0, 1, "a.png"))


def test_a_frame_rate_must_be_positive(folder):
    with pytest.raises(UsageError, match="frame rate must be above 0"):
        probe(folder, frame_rate=Fraction(0))


@pytest.mark.parametrize(
    ("path", "images"),
    [("out", True), ("out/", True), ("a.b/", True), ("out.mp4", False), ("a/b.mkv", False)],
)
def test_output_paths_tell_folders_from_files(path, images):
    assert is_image_output(path) is images
