"""Videos as they are written: times, shape, settings, equal bytes."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from psssr_fast.errors import OutputError
from psssr_fast.video import (
    EncoderSettings,
    open_reader,
    probe,
)


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".m4v"])
@pytest.mark.parametrize("name", ["cfr.mp4", "vfr.mp4", "ntsc.mov", "late.mp4", "gops.mkv"])
def test_times_are_kept_exactly(tmp_path, sample, transcode, frame_times, name, extension):
    output = tmp_path / f"out{extension}"
    assert transcode(sample(name), output, enlarge=2) == ()
    assert frame_times(output) == frame_times(sample(name))
    info = probe(output)
    assert (info.frames, info.frames_exact) == (len(frame_times(output)), True)
    assert (info.width, info.height) == (128, 96)


@pytest.mark.parametrize("name", ["gops.mkv", "two_sounds.mkv", "vp9.webm"])
def test_times_of_matroska_are_kept_exactly_in_matroska(
    tmp_path, sample, transcode, frame_times, name
):
    transcode(sample(name), tmp_path / "out.mkv")
    assert frame_times(tmp_path / "out.mkv") == frame_times(sample(name))


def test_matroska_rounds_other_times_to_milliseconds_and_says_so(
    tmp_path, sample, transcode, frame_times
):
    warnings = transcode(sample("ntsc.mov"), tmp_path / "out.mkv")
    assert any("whole milliseconds" in warning for warning in warnings)
    pairs = zip(frame_times(tmp_path / "out.mkv"), frame_times(sample("ntsc.mov")), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= Fraction(1, 2000)


@pytest.mark.parametrize("bframes", ["0", "2"])
@pytest.mark.parametrize(("pts", "last"), [((0, 100, 200, 250), 700), ((0, 500, 1000, 1010), 5)])
def test_the_last_frame_keeps_its_duration(tmp_path, make_clip, transcode, bframes, pts, last):
    source = make_clip(
        tmp_path / "in.mp4", pts=pts, time_base=Fraction(1, 1000), duration=last,
        options=(("bf", bframes),),
    )  # fmt: skip
    end = probe(source).end_time
    with open_reader(source) as reader:
        durations = [round(frame.duration * reader.info.time_base * 1000) for frame in reader]
    assert durations[:-1] == [after - before for before, after in pairwise(pts)]
    assert end == Fraction(pts[-1] + durations[-1], 1000)
    transcode(source, tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").end_time == end


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".mkv"])
def test_shape_of_pixels_is_kept(tmp_path, sample, transcode, extension):
    transcode(sample("aspect.mp4"), tmp_path / f"out{extension}", enlarge=2)
    assert probe(tmp_path / f"out{extension}").sample_aspect_ratio == Fraction(4, 3)


def test_shape_of_pixels_that_would_be_lost_is_refused(tmp_path, sample, transcode):
    with pytest.raises(OutputError, match=r"pixels of shape 4/3.*Write a \.mp4"):
        transcode(sample("aspect.mp4"), tmp_path / "out.webm")


def test_a_turned_video_comes_out_upright_without_a_matrix(tmp_path, sample, transcode, psnr):
    transcode(sample("turned_aspect.mp4"), tmp_path / "out.mp4", EncoderSettings(crf=0))
    info = probe(tmp_path / "out.mp4")
    assert (info.rotation, info.width, info.height) == (0, 48, 64)
    assert (info.stored_width, info.sample_aspect_ratio) == (48, Fraction(3, 4))
    with open_reader(sample("turned_aspect.mp4")) as a, open_reader(tmp_path / "out.mp4") as b:
        assert psnr(next(iter(a)).pixels, next(iter(b)).pixels) > 40


def test_odd_sizes_are_stored_with_full_chroma_and_a_warning(tmp_path, sample, transcode):
    warnings = transcode(sample("odd.mkv"), tmp_path / "out.mp4")
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.pixel_format) == (63, 47, "yuv444p")
    assert any("many players cannot show" in warning for warning in warnings)


def test_webm_gets_vp9_by_default(tmp_path, sample, transcode):
    transcode(sample("vp9.webm"), tmp_path / "out.webm")
    assert probe(tmp_path / "out.webm").codec == "vp9"


def test_codec_options_reach_the_encoder(tmp_path, sample, transcode):
    quiet = (("x265-params", "log-level=none"),)
    for name, crf in (("small.mp4", 40), ("large.mp4", 5)):
        settings = EncoderSettings(codec="libx265", crf=crf, options=quiet, audio="drop")
        transcode(sample("cfr.mp4"), tmp_path / name, settings)
    with av.open(str(tmp_path / "small.mp4")) as output:
        assert output.streams.video[0].codec_context.codec_tag == "hvc1"  # not hev1, for Apple
    assert (tmp_path / "small.mp4").stat().st_size < (tmp_path / "large.mp4").stat().st_size / 2


def test_the_number_of_threads_reaches_the_encoder(tmp_path, make_clip, transcode):
    source = make_clip(tmp_path / "in.mp4", pts=range(3), size=(320, 192))
    transcode(source, tmp_path / "out.mp4", EncoderSettings(threads=2))
    assert b" threads=2 " in (tmp_path / "out.mp4").read_bytes()  # x264 notes its settings


@pytest.mark.parametrize("extension", [".mp4", ".mkv"])
def test_equal_input_gives_equal_bytes(tmp_path, make_clip, transcode, extension):
    # Of this size, x264 with AVX-512 gives other bytes in nearly every run.
    source = make_clip(tmp_path / "in.mkv", pts=range(12), size=(320, 192), audio=("eng",))
    memory, outputs = [], set()
    for run in range(4):
        output = tmp_path / f"{run}{extension}"
        transcode(source, output, EncoderSettings())
        outputs.add(output.read_bytes())
        memory.append(np.full(100_000 * (run + 1), run, np.uint8))  # so that runs find it changed
    assert len(outputs) == 1
