"""From the reader straight to the writer: what is in the output is what was in the input.

Pictures are compared as decoded by libswscale, not by the code under test.
"""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation

from psssr_fast.video import EncoderSettings, open_reader, probe

MASTERING = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50)"
HDR10 = ("x264-params", f"mastering-display={MASTERING}:cll=1000,400")
LOSSLESS = (("qp", "0"), ("preset", "ultrafast"))
H264 = EncoderSettings(preset="ultrafast", options=(("x264-params", "qp=0"),))
FFV1 = EncoderSettings(codec="ffv1")
ACCURATE = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


@dataclass(frozen=True)
class Case:
    """A clip (the fields of ``Clip``), what encodes it again, and into what."""

    name: str
    clip: dict
    encoder: EncoderSettings = H264
    output: str = ".mp4"


def case(name, output=".mp4", encoder=H264, source=".mp4", **clip):
    fields = {"pts": range(6), "options": LOSSLESS, **clip, "source": source}
    return Case(name, fields, encoder, output)


DEEP = {"pixel_format": "yuv420p10le"}
PQ = {"primaries": 9, "transfer": 16, "matrix": 9, "range": 1}
CASES = [
    case("vfr", pts=(0, 1001, 2002, 2500, 6000, 6001, 9000), time_base=Fraction(1, 30000),
         rate=Fraction(30), audio=("eng",)),
    case("b-frames", pts=range(24), options=(("crf", "1"), ("bf", "3"), ("b-adapt", "0")),
         encoder=EncoderSettings(options=(("x264-params", "qp=0"),)), audio=("eng",)),
    case("edit list", pts=[1234567 + 3003 * i for i in range(6)], time_base=Fraction(1, 90000),
         rate=Fraction(30000, 1001), container_options=(("movie_timescale", "90000"),),
         audio=("eng",)),
    case("two sounds", ".mkv", source=".mkv", pts=[40 * i for i in range(12)],
         time_base=Fraction(1, 1000), rate=Fraction(25), audio=("eng", "deu", "fra"),
         subtitles=((0, 200, "one"), (300, 100, "two"))),
    case("bt601", primaries=6, transfer=6, matrix=6, range=1),
    case("bt709", primaries=1, transfer=1, matrix=1, range=1),
    case("full range", primaries=1, transfer=1, matrix=1, range=2, pixel_format="yuv420p"),
    case("10 bits", **DEEP, primaries=1, transfer=1, matrix=1, range=1, audio=("eng",)),
    case("10 bits, full range", **DEEP, primaries=1, transfer=1, matrix=1, range=2),
    case("hdr10", **DEEP, **PQ, options=(*LOSSLESS, HDR10), audio=("eng",)),
    case("hdr10 in matroska", ".mkv", source=".mkv", pts=range(0, 240, 40), **DEEP, **PQ,
         time_base=Fraction(1, 1000), rate=Fraction(25), options=(*LOSSLESS, HDR10)),
    case("hdr10 as hevc", **DEEP, **PQ, options=(*LOSSLESS, HDR10), encoder=EncoderSettings(
        codec="libx265", crf=0, preset="ultrafast",
        options=(("x265-params", "lossless=1:log-level=none"),))),
    case("hlg", **DEEP, primaries=9, transfer=18, matrix=9, range=1),
    case("bt2020, 8 bits", primaries=9, transfer=14, matrix=9, range=1),
    case("12 bits", ".mkv", source=".mkv", encoder=FFV1, codec="ffv1", options=(),
         pixel_format="yuv422p12le", matrix=1, range=1),
    case("4:2:2", pixel_format="yuv422p", matrix=1, range=1),
    case("4:4:4, 10 bits", pixel_format="yuv444p10le", matrix=1, range=1),
    case("odd sides", size=(63, 47), pixel_format="yuv444p", matrix=1, range=1),
    case("rgb", source=".mkv", codec="ffv1", options=(), pixel_format="gbrp10le",),
    case("gray", source=".mkv", codec="ffv1", options=(), pixel_format="gray"),
    case("gray, 10 bits", source=".mkv", codec="ffv1", options=(), pixel_format="gray10le"),
]  # fmt: skip
OUTPUT_FORMATS = {
    "rgb": "yuv444p10le", "gray": "yuvj420p", "gray, 10 bits": "yuv420p10le",
}  # fmt: skip
WARNINGS = {
    "odd sides": (
        "63x47 is stored as yuv444p, which many players cannot show; even sides avoid it",
    )
}


def smooth(width, height, index, channels=3):
    """A 16-bit picture that any chroma sampling holds."""
    y, x = np.mgrid[0:height, 0:width] / 40 + index / 30
    waves = [0.5 + 0.28 * np.sin(x + k) * np.cos(y - k) for k in range(channels)]
    return np.rint(65535 * np.stack(waves, axis=-1)).astype(np.uint16)


def decoded(path, tags):
    """16-bit RGB of every frame, by libswscale, with the matrix and range that ``tags`` say."""
    frames = []
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            if not picture.format.name.startswith("gbr"):
                picture.colorspace, picture.color_range = tags.matrix, tags.range
            rgb = picture.reformat(format="rgb24", interpolation=ACCURATE)
            frames.append(rgb.to_ndarray())
    return frames


def hdr_side_data(path):
    """Mastering display and light level of the first frame, as raw bytes."""
    with av.open(str(path)) as container:
        found = next(container.decode(video=0)).side_data
        wanted = (Type.MASTERING_DISPLAY_METADATA, Type.CONTENT_LIGHT_LEVEL)
        items = (found[i] for i in range(len(found)))
        return {item.type: bytes(item) for item in items if item.type in wanted}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_output_is_the_input(tmp_path, make_clip, transcode, demux, frame_times, psnr, case):
    clip = dict(case.clip)
    size = clip.get("size", (64, 48))
    pictures = tuple(smooth(*size, index) for index in range(len(clip["pts"])))
    source = make_clip(tmp_path / f"in{clip.pop('source')}", pictures=pictures, **clip)
    output = tmp_path / f"out{case.output}"
    assert transcode(source, output, case.encoder) == WARNINGS.get(case.name, ())

    before, after = probe(source), probe(output)
    assert frame_times(output) == frame_times(source)
    assert after.pixel_format == OUTPUT_FORMATS.get(case.name, before.pixel_format)
    assert after.bit_depth == before.bit_depth
    if before.color_used.matrix:  # of RGB there is none to keep
        assert after.color == before.color_used
    assert hdr_side_data(output) == hdr_side_data(source)
    assert (after.mastering_display, after.light_level) == (
        before.mastering_display, before.light_level
    )  # fmt: skip
    assert ("hdr10" in case.name) == (before.mastering_display is not None)
    pairs = zip(decoded(source, before.color_used), decoded(output, after.color), strict=True)
    assert min(psnr(a, b) for a, b in pairs) >= 50

    tracks = [[t for t in demux(path) if t.kind != "video"] for path in (source, output)]
    assert len(tracks[0]) == len(tracks[1])
    for was, now in zip(*tracks, strict=True):
        assert (was.kind, was.digests, was.pts) == (now.kind, now.digests, now.pts)


def test_hdr_metadata_is_read_in_its_units(tmp_path, make_clip):
    options = (*LOSSLESS, HDR10)
    info = probe(make_clip(tmp_path / "a.mp4", pts=(0,), options=options, **DEEP, **PQ))
    display = info.mastering_display
    assert (display.red, display.white) == (
        (Fraction(35400, 50000), Fraction(14600, 50000)),
        (Fraction(15635, 50000), Fraction(16450, 50000)),
    )
    assert (display.min_luminance, display.max_luminance) == (Fraction(50, 10000), 1000)
    assert (info.light_level.max_content, info.light_level.max_average) == (1000, 400)


def ramp(pixel_format, levels):
    """A gray ramp through all levels, as planes."""
    picture = av.VideoFrame(len(levels), 16, pixel_format)
    for number, plane in enumerate(picture.planes):
        rows = np.full((plane.height, plane.line_size // 2), 512, np.uint16)
        if number == 0:
            rows[:, : plane.width] = levels
        plane.update(rows.tobytes())
    return picture


@pytest.mark.parametrize(("color_range", "levels"), [(2, range(1024)), (1, range(64, 941))])
def test_every_level_of_a_ten_bit_ramp_comes_through(tmp_path, transcode, color_range, levels):
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=dict(LOSSLESS))
        stream.width, stream.height, stream.pix_fmt = len(levels) // 2 * 2, 16, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range = 1, color_range
        container.mux(stream.encode(ramp("yuv420p10le", levels[: stream.width])))
        container.mux(stream.encode(None))
    assert transcode(source, output, H264) == ()
    stored = []
    for path in (source, output):
        with av.open(str(path)) as container:
            plane = next(container.decode(video=0)).planes[0]
            rows = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)
            stored.append(rows[:, : plane.width].copy())
    assert np.array_equal(*stored)
    assert len(np.unique(stored[1])) >= (1000 if color_range == 2 else 876)
    with open_reader(output) as reader:
        assert len(np.unique(next(iter(reader)).pixels[0, :, 1])) == len(np.unique(stored[1]))


def test_frames_before_zero_that_an_edit_list_hides_stay_hidden(
    tmp_path, make_clip, transcode, frame_times
):
    source = make_clip(
        tmp_path / "in.mp4", pts=range(-3, 9), options=(("bf", "0"), ("g", "30")),
        container_options=(("avoid_negative_ts", "disabled"),), audio=("eng",),
    )  # fmt: skip
    with av.open(str(source)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 12
    transcode(source, tmp_path / "out.mp4")
    assert frame_times(tmp_path / "out.mp4") == frame_times(source)
    assert len(frame_times(source)) == 9
