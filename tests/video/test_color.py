"""Colour as it is written: tags kept, and numbers that survive the way to RGB and back."""

import av
import numpy as np
import pytest

from psssr_fast.video import (
    EncoderSettings,
    open_reader,
    probe,
)


def decoded_planes(path):
    """Y, U and V of the first frame, as stored."""
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0))
        return [
            np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            for plane in picture.planes
        ]


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    "tags",
    [(1, 1, 1, 1), (6, 6, 6, 1), (9, 14, 9, 1), (1, 1, 1, 2), (5, 6, 5, 2)],
)
def test_colour_tags_are_kept(tmp_path, make_clip, transcode, tags, extension):
    primaries, transfer, matrix, color_range = tags
    source = make_clip(
        tmp_path / "in.mp4", pts=(0,), primaries=primaries, transfer=transfer, matrix=matrix,
        range=color_range,
    )  # fmt: skip
    transcode(source, tmp_path / f"out{extension}")
    color = probe(tmp_path / f"out{extension}").color
    assert (color.primaries, color.transfer, color.matrix, color.range) == tags


def test_untagged_sd_stays_bt601_when_it_becomes_hd(tmp_path, make_clip, transcode):
    source = make_clip(tmp_path / "in.mp4", pts=(0,), size=(64, 160))
    transcode(source, tmp_path / "out.mp4", enlarge=4)
    info = probe(tmp_path / "out.mp4")
    assert info.height == 640
    assert (info.color.matrix, info.color.range) == (6, 1)


def smooth_planes(pictures):
    waves = pictures.waves(3, 256, 192).astype(float)
    y = 16 + waves[..., 0] * 219 / 255
    u, v = 128 + (waves[::2, ::2, 1] - 128) / 4, 128 + (waves[::2, ::2, 2] - 128) / 4
    return [np.rint(plane).astype(np.uint8) for plane in (y, u, v)]


def bar_planes(pictures):
    """75 % bars in BT.709, the width of a bar a multiple of the chroma's."""
    red, green, blue = np.moveaxis(pictures.color_bars(256, 192) / 255.0, -1, 0)
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    u, v = (blue - y) / 1.8556, (red - y) / 1.5748
    planes = [16 + 219 * y, (128 + 224 * u)[::2, ::2], (128 + 224 * v)[::2, ::2]]
    return [np.rint(plane).astype(np.uint8) for plane in planes]


@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6])
def test_smooth_colour_survives_the_way_to_rgb_and_back(
    tmp_path, store_yuv, transcode, pictures, psnr, matrix, color_range
):
    planes = smooth_planes(pictures)
    source = store_yuv(tmp_path / "in.mkv", "libx264", "yuv420p", planes, matrix, color_range)
    transcode(source, tmp_path / "out.mp4", EncoderSettings(options=(("x264-params", "qp=0"),)))
    for before, after in zip(planes, decoded_planes(tmp_path / "out.mp4"), strict=True):
        assert psnr(before, after) >= 50


@pytest.mark.parametrize("crf", [0, 16])
def test_colour_bars_survive_the_way_to_rgb_and_back(
    tmp_path, store_yuv, transcode, pictures, psnr, crf
):
    planes = bar_planes(pictures)
    source = store_yuv(tmp_path / "in.mkv", "libx264", "yuv420p", planes, 1, 1)
    transcode(source, tmp_path / "out.mp4", EncoderSettings(crf=crf))
    luma, u, v = zip(planes, decoded_planes(tmp_path / "out.mp4"), strict=True)
    assert psnr(*luma) >= (50 if crf == 0 else 40)
    inside = np.arange(128) % 16  # chroma columns away from the edges between bars
    inside = (inside > 3) & (inside < 12)
    for before, after in (u, v):
        assert psnr(before[:, inside], after[:, inside]) >= (50 if crf == 0 else 44)


def test_rgb_sources_become_bt709(tmp_path, make_clip, transcode, pictures, psnr):
    source = make_clip(tmp_path / "in.mkv", pts=(0,), codec="ffv1", pixel_format="bgr0", options=())
    transcode(source, tmp_path / "out.mp4", EncoderSettings(crf=0, pixel_format="yuv444p"))
    assert probe(tmp_path / "out.mp4").color.names()["matrix"] == "bt709"
    with open_reader(tmp_path / "out.mp4") as reader:
        assert psnr(next(iter(reader)).pixels, pictures.waves(0, 64, 48)) > 48
