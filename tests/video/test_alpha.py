"""Alpha: kept where the output can hold it, said to be lost where it cannot."""

import av
import numpy as np
import pytest
from job_fixtures import open_job

from psssr_fast.video import EncoderSettings, Frame, open_reader, probe
from psssr_fast.video.alpha import enlarge_alpha


def transparent(width, height, index, dtype=np.uint8):
    """RGBA in which every level of alpha occurs."""
    peak = np.iinfo(dtype).max
    y, x = np.mgrid[0:height, 0:width]
    levels = [0.5 + 0.25 * np.sin(x / 17 + k + index / 9) * np.cos(y / 19) for k in range(3)]
    alpha = (x + 3 * y + index) % 256 / 255
    return np.rint(np.stack([*levels, alpha], axis=-1) * peak).astype(dtype)


def read_all(path):
    with open_reader(path) as reader:
        return reader.info, list(reader)


FFV1 = EncoderSettings(codec="ffv1")
PRORES = EncoderSettings(codec="prores_ks")
LOSSLESS_VP9 = EncoderSettings(codec="libvpx-vp9", crf=0, options=(("lossless", "1"),))


@pytest.fixture
def clip(make_clip, tmp_path):
    def make(name, codec, pixel_format, options=(), dtype=np.uint8):
        pictures = tuple(transparent(64, 48, index, dtype) for index in range(3))
        return make_clip(
            tmp_path / name, pts=range(3), codec=codec, pixel_format=pixel_format,
            options=options, pictures=pictures, matrix=1, range=1,
        )  # fmt: skip

    return make


@pytest.mark.parametrize(
    ("source", "output", "encoder", "expected"),
    [
        (("in.mkv", "ffv1", "yuva420p"), "out.mkv", FFV1, "yuva420p"),
        (("in.mkv", "ffv1", "bgra"), "out.mkv", FFV1, "yuva444p"),
        (("in.mkv", "ffv1", "yuva444p12le", (), np.uint16), "out.mkv", FFV1, "yuva444p12le"),
        (("in.mkv", "ffv1", "gbrap10le", (), np.uint16), "out.mov", PRORES, "yuva444p12le"),
        (
            ("in.webm", "libvpx-vp9", "yuva420p", (("lossless", "1"), ("auto-alt-ref", "0"))),
            "out.webm", LOSSLESS_VP9, "yuva420p",
        ),
    ],
    ids=lambda value: value[2] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_alpha_is_kept_exactly(tmp_path, clip, transcode, psnr, source, output, encoder, expected):
    path = clip(*source)
    assert not any("alpha" in warning for warning in transcode(path, tmp_path / output, encoder))
    before, frames = read_all(path)
    after, copies = read_all(tmp_path / output)
    assert (before.alpha, after.alpha, after.pixel_format) == (True, True, expected)
    assert len(frames) == len(copies) == 3
    for frame, copy in zip(frames, copies, strict=True):
        levels = 1023 if encoder is PRORES else 65535  # prores_ks takes 10 bits and stores 16
        assert np.abs(frame.alpha.astype(int) - copy.alpha).max() <= 65535 // levels - 1
        assert frame.alpha.dtype == frame.pixels.dtype == copy.alpha.dtype
        assert psnr(frame.pixels, copy.pixels) >= (40 if encoder is PRORES else 50)
        assert len(np.unique(frame.alpha)) > 150


def test_alpha_goes_into_a_folder_of_pictures_and_back(tmp_path, clip, transcode):
    path = clip("in.mkv", "ffv1", "bgra")
    assert transcode(path, tmp_path / "out") == ()
    _, frames = read_all(path)
    info, copies = read_all(tmp_path / "out")
    assert (info.alpha, info.pixel_format) == (True, "rgba")
    for frame, copy in zip(frames, copies, strict=True):
        assert np.array_equal(frame.alpha, copy.alpha)
        assert np.array_equal(frame.pixels, copy.pixels)


def test_alpha_that_cannot_be_kept_is_said_to_be_lost(tmp_path, clip, transcode):
    path = clip("in.mkv", "ffv1", "yuva420p")
    warnings = transcode(path, tmp_path / "out.mkv")
    assert any("the alpha channel is dropped: libx264" in warning for warning in warnings)
    assert not probe(tmp_path / "out.mkv").alpha


@pytest.mark.parametrize("pixel_format", ["yuva420p", "bgra"])
def test_webm_keeps_alpha_unasked(tmp_path, clip, transcode, pixel_format):
    """Though at this size 4:4:4 would hold more of the second: libvpx refuses it with alpha."""
    transcode(clip("in.mkv", "ffv1", pixel_format), tmp_path / "out.webm")
    with av.open(str(tmp_path / "out.webm")) as container:
        stream = container.streams.video[0]
        assert stream.metadata["alpha_mode"] == "1"
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert all(packet.has_sidedata("matroska_block_additional") for packet in packets)


def test_alpha_of_a_turned_video_turns_with_it(tmp_path, make_clip):
    pictures = (transparent(64, 48, 0),)
    path = make_clip(
        tmp_path / "in.mov", pts=(0,), codec="prores_ks", pixel_format="yuva444p10le", options=(),
        pictures=pictures, rotation=(90, False, False),
    )  # fmt: skip
    _, (frame,) = read_all(path)
    assert frame.alpha.shape == frame.pixels.shape[:2] == (64, 48)
    expected = np.rot90(pictures[0][..., 3]).astype(float) / 255
    assert np.abs(frame.alpha / 65535 - expected).max() < 1 / 500


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_enlarged_with_the_picture(dtype):
    peak = np.iinfo(dtype).max
    alpha = np.full((6, 9), peak, dtype)
    alpha[:, :4] = 0
    frame = Frame(np.zeros((6, 9, 3), dtype), 0, 1, "a.png", alpha)
    larger = frame.with_pixels(np.zeros((24, 36, 3), dtype))
    assert (larger.alpha.shape, larger.alpha.dtype) == ((24, 36), dtype)
    assert (larger.alpha[:, :12].max(), larger.alpha[:, 22:].min()) == (0, peak)
    assert enlarge_alpha(alpha, 6, 9) is alpha
    assert frame.with_pixels(np.ones((6, 9, 3), dtype)).alpha is alpha


def test_opaque_frames_of_a_transparent_video_are_opaque(tmp_path, clip):
    with (
        open_reader(clip("in.mkv", "ffv1", "yuva420p")) as reader,
        open_job(tmp_path / "out.mkv", reader, (64, 48), FFV1) as job,
    ):
        job.write(Frame(np.full((48, 64, 3), 90, np.uint8), 0, 40, "a.png"))
        job.finish()
    _, (frame,) = read_all(tmp_path / "out.mkv")
    assert (frame.alpha == 255).all()
