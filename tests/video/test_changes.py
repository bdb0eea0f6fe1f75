"""Videos that are not of one piece: what changes on the way is refused or said."""

from fractions import Fraction

import av
import pytest

from psssr_fast.errors import InputError
from psssr_fast.video import open_reader, probe
from psssr_fast.video.watch import lost_with


@pytest.fixture
def glued(tmp_path, make_clip):
    """``glued(first, second)``: five frames with the fields of each, in one H.264 stream."""

    def make(first, second):
        content = b""
        for number, fields in enumerate((first, second)):
            options = (("preset", "ultrafast"), *fields.pop("options", ()))
            part = make_clip(tmp_path / f"{number}.h264", pts=range(5), options=options, **fields)
            content += part.read_bytes()
        path = tmp_path / "glued.h264"
        path.write_bytes(content)
        return path

    return make


def read_warnings(path):
    with open_reader(path) as reader:
        assert len(list(reader)) == 10
        return reader.warnings


def test_one_piece_is_nothing_to_be_warned_about(glued):
    warnings = read_warnings(glued({"matrix": 1}, {"matrix": 1}))
    assert [warning for warning in warnings if "change" in warning] == []


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"matrix": 1}, {"matrix": 6}, "its colour tags change at frame 6"),
        ({}, {"aspect": Fraction(4, 3)}, "the shape of its pixels changes at frame 6"),
        ({"aspect": Fraction(4, 3)}, {}, "the shape of its pixels changes at frame 6"),
        ({}, {"options": (("x264-params", "tff=1"),)}, "5 frame(s) interlaced"),
    ],
    ids=["tags", "aspect", "aspect back", "fields"],
)
def test_changes_on_the_way_are_said(glued, first, second, words):
    assert any(words in warning for warning in read_warnings(glued(first, second)))


def test_interlaced_from_the_beginning_is_said_once(glued):
    fields = {"options": (("x264-params", "tff=1"),)}
    warnings = read_warnings(glued(dict(fields), dict(fields)))
    assert len([warning for warning in warnings if "interlaced" in warning]) == 1


def test_a_change_of_size_is_refused_with_the_number_of_the_frame(glued):
    path = glued({}, {"size": (96, 48)})
    frames = []
    with (
        pytest.raises(InputError, match=r"frame 6 is 96x48, those before it 64x48"),
        open_reader(path) as reader,
    ):
        frames.extend(reader)
    assert len(frames) == 5
    assert InputError.exit_code == 3


def test_ten_bits_after_eight_stay_within_what_the_first_frame_said(glued):
    path = glued({}, {"pixel_format": "yuv420p10le"})
    with open_reader(path) as reader:
        frames = list(reader)
    assert {frame.pixels.dtype.name for frame in frames} == {"uint8"}
    assert len(frames) == 10


def test_metadata_that_is_lost_with_the_pixels_is_said(tmp_path, make_clip):
    """A stereo clip: x264 writes how its views lie in a frame, which nothing carries over."""
    options = (("x264-params", "frame-packing=3"), ("preset", "ultrafast"))
    path = make_clip(tmp_path / "3d.mp4", pts=range(3), options=options)
    with av.open(str(path)) as container:
        assert lost_with(next(container.decode(video=0))) == ["dropped: the layout of its 3D views"]
    assert "dropped: the layout of its 3D views" in probe(path).warnings
