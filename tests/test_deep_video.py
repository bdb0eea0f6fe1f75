"""More than 8 bits, HDR and alpha, from file to file through the whole pipeline."""

import av
import numpy as np
import pytest
import torch
from model_fixtures import upscaler

from psssr_fast.arrays import check_frame, from_planar, to_planar, to_words
from psssr_fast.config import Windows, settings_for
from psssr_fast.errors import InputError
from psssr_fast.video import EncoderSettings, open_reader, probe

LARGE = Windows(frames=8, height=64, width=1024, overlap_frames=1, overlap_pixels=16)
MASTERING = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50)"


def identity():
    """Untrained networks, and rounding: at scale 1 every frame comes out as it went in."""
    return upscaler(trained=False, settings=settings_for("paper", LARGE))


def write_ramp(path):
    """Four frames of an HDR10 ramp with all 1024 levels of full-range luma."""
    options = {"qp": "0", "x264-params": f"mastering-display={MASTERING}:cll=1000,400"}
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 1024, 16, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc = 9, 16
        context.colorspace, context.color_range = 9, 2
        for _ in range(4):
            picture = av.VideoFrame(1024, 16, "yuv420p10le")
            for number, plane in enumerate(picture.planes):
                rows = np.full((plane.height, plane.line_size // 2), 512, np.uint16)
                if number == 0:
                    rows[:, :1024] = np.arange(1024)
                plane.update(rows.tobytes())
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def test_a_ten_bit_hdr_video_stays_one(tmp_path):
    source, output = write_ramp(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    encoder = EncoderSettings(preset="ultrafast", options=(("x264-params", "qp=0"),))
    report = identity().upscale_video(source, output, scale=1, encoder=encoder)
    assert report.warnings == ()
    before, after = probe(source), probe(output)
    assert (after.pixel_format, after.color) == ("yuv420p10le", before.color)
    assert after.mastering_display == before.mastering_display
    assert after.light_level == before.light_level
    with open_reader(output) as reader:
        for frame in reader:
            assert frame.pixels.dtype == np.uint16
            assert len(np.unique(frame.pixels[0, :, 1])) >= 1000


def test_frames_of_an_hdr_video_keep_its_colours_and_say_what_they_lose(tmp_path):
    source = write_ramp(tmp_path / "in.mp4")
    report = identity().upscale_video(source, tmp_path / "frames/", scale=1)
    assert any("mastering display" in warning for warning in report.warnings)
    files = sorted((tmp_path / "frames").iterdir())
    assert len(files) == 4
    assert all(b"cICP" in file.read_bytes() for file in files)  # BT.2020 primaries and PQ


def test_names_as_long_as_they_may_be_are_written(tmp_path):
    folder, name = tmp_path / "in", "\N{GRINNING FACE}" * 61 + ".png"  # 248 bytes
    folder.mkdir()
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 24, 16, "rgb24", 1
    picture = av.VideoFrame.from_ndarray(np.zeros((16, 24, 3), np.uint8), format="rgb24")
    (folder / name).write_bytes(b"".join(map(bytes, context.encode(picture))))
    identity().upscale_video(folder, tmp_path / "out", scale=2)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]


def test_deep_pictures_with_alpha_are_enlarged_with_it(tmp_path):
    y, x = np.mgrid[0:16, 0:24]
    pixels = np.stack([x * 2500, y * 4000, x * 1000 + y, x * 2500], axis=-1)
    folder = tmp_path / "in"
    folder.mkdir()
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 24, 16, "rgba64be", 1
    picture = av.VideoFrame.from_ndarray(pixels.astype(np.uint16), format="rgba64be")
    (folder / "a.png").write_bytes(b"".join(map(bytes, context.encode(picture))))
    identity().upscale_video(folder, tmp_path / "out", scale=2)
    with open_reader(tmp_path / "out") as reader:
        (frame,) = reader
    assert frame.pixels.shape == (32, 48, 3)
    assert (frame.alpha.shape, frame.alpha.dtype) == ((32, 48), np.uint16)
    assert np.abs(frame.alpha.astype(int) - frame.pixels[..., 0]).max() <= 1
    assert len(np.unique(frame.alpha)) > 40


def test_sixteen_bit_values_survive_the_way_to_planes_and_back():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    frame = np.repeat(every[..., None], 3, axis=2)
    planar = to_planar(frame)
    assert (planar.dtype, tuple(planar.shape)) == (torch.float32, (3, 256, 256))
    assert (planar.min(), planar.max()) == (-1, 1)
    assert np.array_equal(to_words(planar), frame)
    assert np.array_equal(from_planar(planar, frame, truncate=True), frame)
    eight = np.zeros((2, 2, 3), np.uint8)
    assert from_planar(planar[:, :2, :2], eight).dtype == np.uint8


def test_numbers_beyond_the_range_are_clamped():
    picture = torch.tensor([-2.0, float("nan"), float("inf"), 1.5])[None, None].expand(3, 1, 4)
    assert to_words(picture)[0, :, 0].tolist() == [0, 0, 65535, 65535]


def test_sixteen_bit_frames_go_through_streams():
    frames = np.random.default_rng(0).integers(0, 65536, (3, 16, 16, 3), np.uint16)
    assert np.array_equal(identity()(frames, scale=1), frames)
    assert check_frame(frames[0]) is not None
    with pytest.raises(InputError, match="uint8 or uint16"):
        check_frame(frames[0].astype(np.int32))
    with pytest.raises(InputError, match="of one kind"):
        check_frame(frames[0].astype(np.uint8), frames[0])
