"""What is carried over beside the pictures: sound, subtitles, chapters, fonts, titles, roles."""

from fractions import Fraction

import av
import pytest
from job_fixtures import open_job

from psssr_fast.errors import OutputError
from psssr_fast.video import EncoderSettings, open_reader, probe


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("cfr.mp4", ".mp4"),
        ("vfr.mp4", ".mov"),
        ("late.mp4", ".mp4"),
        ("two_sounds.mkv", ".mkv"),
        ("vp9.webm", ".webm"),
        ("vp9.webm", ".mkv"),
        ("flac.mkv", ".mkv"),
        ("flac.mkv", ".mp4"),
    ],
)
def test_sound_is_copied_packet_by_packet(tmp_path, sample, transcode, demux, name, extension):
    warnings = transcode(sample(name), tmp_path / f"out{extension}")
    assert not any("sound" in warning or "later" in warning for warning in warnings)
    before = [track for track in demux(sample(name)) if track.kind == "audio"]
    after = [track for track in demux(tmp_path / f"out{extension}") if track.kind == "audio"]
    assert len(before) == len(after) > 0
    for source, copy in zip(before, after, strict=True):
        assert len(source.digests) > 4
        assert copy.digests == source.digests
        assert copy.pts == source.pts
        assert copy.metadata["language"] == source.metadata["language"]


def test_sound_from_matroska_stays_within_a_sample_in_mp4(tmp_path, sample, transcode, demux):
    transcode(sample("two_sounds.mkv"), tmp_path / "out.mp4")
    for source, copy in zip(
        demux(sample("two_sounds.mkv"))[1:3], demux(tmp_path / "out.mp4")[1:3], strict=True
    ):
        assert source.kind == copy.kind == "audio"
        assert copy.digests == source.digests
        pairs = zip(copy.pts, source.pts, strict=True)
        assert max(abs(a - b) for a, b in pairs) <= Fraction(1, 48000)


def test_priming_before_zero_moves_everything_alike_in_matroska(
    tmp_path, sample, transcode, demux, frame_times
):
    source, output = sample("cfr.mp4"), tmp_path / "out.mkv"
    warnings = transcode(source, output)
    assert any("everything is shown 21 ms later" in warning for warning in warnings)
    before, after = demux(source)[1], demux(output)[1]
    assert after.digests == before.digests
    shifts = [b - a for a, b in zip(before.pts, after.pts, strict=True)]
    shifts += [b - a for a, b in zip(frame_times(source), frame_times(output), strict=True)]
    assert max(shifts) - min(shifts) <= Fraction(1, 1000)


def test_priming_of_opus_does_not_move_anything(tmp_path, sample, transcode, demux, frame_times):
    transcode(sample("vp9.webm"), tmp_path / "opus.mp4")
    warnings = transcode(tmp_path / "opus.mp4", tmp_path / "out.mkv")
    assert not any("later" in warning for warning in warnings)
    assert frame_times(tmp_path / "out.mkv") == frame_times(tmp_path / "opus.mp4")
    before, after = demux(tmp_path / "opus.mp4")[1], demux(tmp_path / "out.mkv")[1]
    assert before.pts[0] < 0
    assert abs(after.pts[0] - before.pts[0]) <= Fraction(1, 1000)


def test_sound_can_be_dropped(tmp_path, sample, transcode):
    transcode(sample("cfr.mp4"), tmp_path / "out.mp4", EncoderSettings(audio="drop"))
    assert probe(tmp_path / "out.mp4").audio == ()


def test_sound_that_the_format_cannot_hold_is_refused_before_any_frame(tmp_path, sample):
    with (
        open_reader(sample("cfr.mp4")) as reader,  # AAC
        pytest.raises(OutputError, match=r"webm cannot hold its sound.*Write to a \.mkv"),
        open_job(tmp_path / "out.webm", reader, (64, 48)),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_sound_that_only_the_header_refuses_is_refused_before_any_frame(tmp_path, sample):
    with (
        open_reader(sample("flac.mkv")) as reader,
        pytest.raises(OutputError, match=r"mov refuses streams of libx264, flac.*a \.mkv"),
        open_job(tmp_path / "out.mov", reader, (64, 48)),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_matroska_keeps_subtitles_chapters_fonts_and_titles(tmp_path, sample, transcode, demux):
    transcode(sample("two_sounds.mkv"), tmp_path / "out.mkv")
    before, after = demux(sample("two_sounds.mkv"))[3], demux(tmp_path / "out.mkv")[3]
    assert after.kind == "subtitle"
    assert (after.times, after.digests) == (before.times, before.digests)
    assert len(after.digests) == 3
    with av.open(str(tmp_path / "out.mkv")) as output:
        marks = [
            (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
            for c in output.chapters()
        ]
        assert marks == [
            (0, Fraction(1, 2), "first"),
            (Fraction(1, 2), Fraction(6, 5), "second"),
        ]
        assert (output.metadata["title"], output.metadata["ARTIST"]) == ("A film", "Somebody")
        assert [(a.name, a.data) for a in output.streams.attachments] == [("font.ttf", b"FONT" * 9)]


def test_mp4_keeps_chapters_and_drops_text_subtitles_with_a_warning(tmp_path, sample, transcode):
    warnings = transcode(sample("two_sounds.mkv"), tmp_path / "out.mp4")
    assert any("subtitle stream 3 is dropped" in warning for warning in warnings)
    with av.open(str(tmp_path / "out.mp4")) as output:
        titles = [chapter["metadata"]["title"] for chapter in output.chapters()]
        assert (titles, output.metadata["title"]) == (["first", "second"], "A film")
    # The stream in which MP4 keeps the titles is nothing to be warned about.
    assert transcode(tmp_path / "out.mp4", tmp_path / "again.mp4") == ()
    with av.open(str(tmp_path / "again.mp4")) as output:
        assert [chapter["metadata"]["title"] for chapter in output.chapters()] == titles
        assert len(output.streams.data) == 1  # and its stream is not copied beside
    assert probe(tmp_path / "again.mp4").data == ()
    assert probe(tmp_path / "again.mp4").chapters == 2


def test_roles_of_streams_are_kept(tmp_path, sample, transcode):
    transcode(sample("two_sounds.mkv"), tmp_path / "out.mkv")
    roles = []
    for path in (sample("two_sounds.mkv"), tmp_path / "out.mkv"):
        with av.open(str(path)) as container:
            roles.append([stream.disposition for stream in container.streams])
    assert roles[0] == roles[1]
    assert roles[0][1] != roles[0][2]
