"""What is in a file beside picture and sound: covers, data, timecode, tags, roles; and that what a
format does not keep is said."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from psssr_fast.video import EncoderSettings, probe

ROLES = Disposition.default | Disposition.hearing_impaired
FILE_TAGS = {
    "title": "T", "artist": "A", "comment": "C", "date": "2020", "maker_note": "x",
    "creation_time": "2020-01-01T00:00:00.000000Z", "location": "+12.0+013.0/",
}  # fmt: skip
VIDEO_TAGS = {"language": "eng", "title": "main", "timecode": "01:00:00:00", "scene_note": "y"}


def cover_picture():
    context = av.CodecContext.create("mjpeg", "w")
    context.width = context.height = 32
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 25)
    packets = context.encode(av.VideoFrame(32, 32, "yuvj420p")) + context.encode(None)
    return b"".join(bytes(packet) for packet in packets)


COVER = cover_picture()


def add_pictures(output, shade):
    stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.codec_context.time_base = stream.time_base = Fraction(1, 25)

    def write():
        for index in range(5):
            picture = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), shade + index, np.uint8), format="rgb24"
            )
            picture.pts, picture.time_base = index, Fraction(1, 25)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))

    return stream, write


@pytest.fixture
def rich(tmp_path):
    """``rich("in.mp4", cover=..., data=..., ...)``: a file with much beside the pictures."""

    def make(name, cover=False, data=False, second=None, first_is_default=True):
        path = tmp_path / name
        with av.open(str(path), "w") as output:
            video, write = add_pictures(output, 60)
            video.metadata.update(VIDEO_TAGS)
            video.disposition = Disposition.default if first_is_default else Disposition(0)
            writers = [write]
            if second is not None:
                other, write_other = add_pictures(output, 160)
                other.disposition = second
                writers.append(write_other)
            sound = output.add_stream("aac", rate=48000, layout="mono")
            sound.metadata.update({"language": "deu", "title": "sound"})
            sound.disposition = ROLES
            output.metadata.update(FILE_TAGS)
            extra = add_extras(output, path, cover, data)
            for write in writers:
                write()
            for packet in extra:
                output.mux(packet)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 48000
            output.mux(sound.encode(silence))
            output.mux(sound.encode(None))
        return path

    return make


def add_extras(output, path, cover, data):
    packets = []
    if data:
        stream = output.add_data_stream("bin_data")  # as action cameras do
        stream.time_base = Fraction(1, 1000)
        packets.append((stream, b"DATA1234"))
    if cover and path.suffix == ".mkv":
        output.add_attachment("cover.jpg", "image/jpeg", COVER)
    elif cover:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.disposition = "yuvj420p", Disposition.attached_pic
        packets.append((stream, COVER))
    made = []
    for stream, content in packets:
        packet = av.Packet(content)
        packet.pts = packet.dts = 0
        packet.duration, packet.time_base, packet.stream = 1, Fraction(1, 1000), stream
        made.append(packet)
    return made


def streams_of(path):
    """``(kind, disposition, tags, payload)`` of every stream; tags under small letters."""
    with av.open(str(path)) as container:
        streams = list(container.streams)
        payload = {stream.index: b"" for stream in streams}
        for packet in container.demux():
            payload[packet.stream_index] += bytes(packet)
        return [
            (
                stream.type,
                stream.disposition,
                {key.lower(): value for key, value in stream.metadata.items()},
                stream.data if stream.type == "attachment" else payload[stream.index],
            )
            for stream in streams
        ]


def covers_of(path):
    return [item[3] for item in streams_of(path) if item[1] & Disposition.attached_pic]


@pytest.mark.parametrize("source", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("output", ["out.mp4", "out.mkv"])
def test_cover_pictures_are_kept(tmp_path, rich, transcode, source, output):
    path = rich(source, cover=True)
    assert covers_of(path) == [COVER]
    assert len(probe(path).attachments) == 1
    warnings = transcode(path, tmp_path / output)
    assert covers_of(tmp_path / output) == [COVER]
    assert not any("cover" in warning for warning in warnings)


def test_a_cover_picture_that_cannot_be_kept_is_said_to_be_lost(tmp_path, rich, transcode):
    path = rich("in.mkv", cover=True)
    settings = EncoderSettings(audio="drop")
    warnings = transcode(path, tmp_path / "out.webm", settings)
    assert any("cover picture 2 is dropped: webm holds no" in warning for warning in warnings)


@pytest.mark.parametrize("output", ["out.mp4", "out.mov"])
def test_data_streams_are_copied_where_they_can_be(tmp_path, rich, transcode, output):
    path = rich("in.mp4", data=True)
    warnings = transcode(path, tmp_path / output)
    assert not any("data" in warning for warning in warnings)
    assert [item[3] for item in streams_of(tmp_path / output) if item[3] == b"DATA1234"]


def test_data_that_cannot_be_kept_is_said_to_be_lost(tmp_path, rich, transcode):
    path = rich("in.mp4", data=True)
    assert [stream.codec for stream in probe(path).data] == ["bin_data", "unknown"]
    warnings = transcode(path, tmp_path / "out.mkv")
    (dropped,) = [warning for warning in warnings if "data stream" in warning]
    assert dropped == "data stream 2 is dropped: matroska cannot hold bin_data"


@pytest.mark.parametrize(
    ("source", "output", "not_kept"),
    [
        ("in.mp4", "out.mp4", []),
        (
            "in.mp4",
            "out.mov",
            ["audio stream 1: language", "the roles of audio stream 1: hearing_impaired"],
        ),
        ("in.mkv", "out.mkv", []),
        ("in.mkv", "out.mp4", ["the file: MAKER_NOTE", "the video: SCENE_NOTE"]),
        # What an MP4 calls hearing impaired is read as captions as well.
        ("in.mp4", "out.mkv", ["the roles of audio stream 1: captions"]),
    ],
)
def test_tags_and_roles_are_kept_or_said_to_be_lost(
    tmp_path, rich, transcode, source, output, not_kept
):
    path = rich(source)
    warnings = [w for w in transcode(path, tmp_path / output) if "does not keep" in w]
    assert all(any(part in warning for warning in warnings) for part in not_kept), warnings
    assert all(any(part in warning for part in not_kept) for warning in warnings), warnings
    before, after = streams_of(path), streams_of(tmp_path / output)
    assert before[0][2]["timecode"] == after[0][2]["timecode"] == "01:00:00:00"
    titles = [{"title", "name"} & item[2].keys() for item in (*before[:2], *after[:2])]
    assert all(titles), after
    if output != "out.mov":
        assert (before[1][1] & ROLES) == (after[1][1] & ROLES) == ROLES
    with av.open(str(tmp_path / output)) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert [found.get(key) for key in ("title", "artist", "comment", "date")] == [
        FILE_TAGS[key] for key in ("title", "artist", "comment", "date")
    ]


def test_the_default_video_is_used_and_the_other_one_said_to_be_left_out(tmp_path, rich, transcode):
    first = rich("first.mkv", second=Disposition(0))
    second = rich("second.mkv", second=Disposition.default, first_is_default=False)
    shades = []
    for path in (first, second):
        assert "1 more video stream(s) are left out" in probe(path).warnings
        transcode(path, tmp_path / f"{path.stem}.out.mkv")
        with av.open(str(tmp_path / f"{path.stem}.out.mkv")) as container:
            assert len(container.streams.video) == 1
            shades.append(next(container.decode(video=0)).to_ndarray(format="rgb24").mean())
    assert shades == [pytest.approx(60, abs=3), pytest.approx(160, abs=3)]
