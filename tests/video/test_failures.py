"""Outputs that cannot be: refused in one line before the work, and nothing left behind."""

import contextlib
import os
import resource

import numpy as np
import pytest
from job_fixtures import folder_of, open_job

from psssr_fast.errors import OutputError, UsageError
from psssr_fast.video import EncoderSettings, Frame, check_output, open_reader, probe


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"codec": "nosuch"}, UsageError, "no such encoder: 'nosuch'"),
        ({"codec": "aac"}, UsageError, "aac is not a video encoder"),
        ({"pixel_format": "yuv999"}, UsageError, "no such pixel format"),
        ({"options": (("nosuch", "1"),)}, UsageError, "has no option nosuch"),
        ({"preset": "nosuch"}, OutputError, "encoder libx264 refuses"),
        ({"codec": "libvpx-vp9", "pixel_format": "nv21"}, OutputError, "libvpx-vp9 refuses"),
        ({"codec": "wmv2"}, OutputError, "cannot hold wmv2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_settings_are_refused_before_any_frame(tmp_path, sample, settings, error, words):
    with (
        open_reader(sample("aspect.mp4")) as reader,
        pytest.raises(error, match=words),
        open_job(tmp_path / "out.mp4", reader, (64, 48), EncoderSettings(**settings)),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_size_is_refused_before_any_frame(tmp_path, sample):
    with (
        open_reader(sample("one_frame.mp4")) as reader,
        pytest.raises(OutputError, match="libx264 refuses 40000x20"),
        open_job(tmp_path / "out.mp4", reader, (40000, 20)),
    ):
        pytest.fail("entered")


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        ("out.xyz", UsageError, "no video format '.xyz'; known: .mp4"),
        ("in.mp4", UsageError, "the output is the input"),
        ("./sub/../in.mp4", UsageError, "the output is the input"),
        ("taken.mp4", OutputError, "exists already. Pass --overwrite"),
        ("missing/out.mp4", OutputError, "there is no folder"),
        ("file", OutputError, "a file, not a folder"),
        ("frames", OutputError, "holds PNG files already"),
        ("taken.mp4/out.mp4", OutputError, "there is no folder"),
    ],
)
def test_a_bad_place_is_refused_before_any_work(tmp_path, sample, output, error, words):
    source = tmp_path / "in.mp4"
    source.write_bytes(sample("one_frame.mp4").read_bytes())
    (tmp_path / "taken.mp4").write_bytes(b"precious")
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "sub").mkdir()
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").write_bytes(b"precious")
    with pytest.raises(error) as caught:
        check_output(f"{tmp_path}/{output}", source)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (2 if error is UsageError else 6)


def test_good_places_are_accepted_and_stay_untouched(tmp_path, sample):
    source = sample("one_frame.mp4")
    (tmp_path / "taken.mp4").write_bytes(b"precious")
    (tmp_path / "empty").mkdir()
    for output in ("new.mp4", "new", "new.dir/", "empty"):
        check_output(f"{tmp_path}/{output}", source)
    check_output(tmp_path / "taken.mp4", source, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"taken.mp4", "empty"}


def test_a_folder_without_permission_is_refused(tmp_path, sample, monkeypatch):
    # root may write everywhere, so the answer of the system is stood in for.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(OutputError, match="no permission to write in"):
        check_output(tmp_path / "out.mp4", sample("one_frame.mp4"))


def test_a_disk_that_refuses_is_reported(sample):
    with (
        open_reader(sample("one_frame.mp4")) as reader,
        pytest.raises(OutputError, match=r"/proc/out\.mp4: cannot be written"),
        open_job("/proc/out.mp4", reader, (64, 48)),
    ):
        pytest.fail("entered")


def test_a_failure_leaves_what_was_there_before_and_nothing_else(tmp_path, sample):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    with (
        pytest.raises(ZeroDivisionError),
        open_reader(sample("cfr.mp4")) as reader,
        open_job(output, reader, (64, 48), overwrite=True) as job,
    ):
        for frame in reader:
            job.write(frame)
        assert list(folder_of(output).glob("*.partial-*"))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert output.read_bytes() == b"precious"


def test_an_existing_output_is_replaced_only_when_asked(tmp_path, sample, transcode):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        transcode(sample("one_frame.mp4"), output)
    with (
        open_reader(sample("one_frame.mp4")) as reader,
        open_job(output, reader, (64, 48), overwrite=True) as job,
    ):
        for frame in job.frames():
            job.write(frame)
        job.finish()
    assert probe(output).frames == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_video_without_frames_is_an_error(tmp_path, sample):
    with (
        pytest.raises(OutputError, match="no frame was written"),
        open_reader(sample("cfr.mp4")) as reader,
        open_job(tmp_path / "out.mp4", reader, (64, 48)) as job,
    ):
        job.finish()
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_size_or_out_of_order_are_refused(tmp_path, sample):
    with (
        open_reader(sample("aspect.mp4")) as reader,
        open_job(tmp_path / "out.mp4", reader, (64, 48)) as job,
    ):
        job.write(Frame(np.zeros((48, 64, 3), np.uint8), 5, None, "a.png"))
        with pytest.raises(UsageError, match=r"the output needs \(48, 64, 3\)"):
            job.write(Frame(np.zeros((48, 60, 3), np.uint8), 6, None, "a.png"))
        with pytest.raises(UsageError, match="timestamps must grow"):
            job.write(Frame(np.zeros((48, 64, 3), np.uint8), 5, None, "a.png"))


@contextlib.contextmanager
def files_of_at_most(size: int):
    """No file of this process may grow larger; Python ignores the signal that goes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_is_an_output_error_and_leaves_nothing(tmp_path, sample):
    lossless = EncoderSettings(crf=0, preset="ultrafast", options=(("tune", "zerolatency"),))
    with (
        pytest.raises(OutputError, match=r"out\.mp4: cannot be written: File too large"),
        open_reader(sample("cfr.mp4")) as reader,
        open_job(tmp_path / "out.mp4", reader, (512, 384), lossless) as job,
        files_of_at_most(20_000),
    ):
        for frame in job.frames():
            job.write(frame.with_pixels(frame.pixels.repeat(8, 0).repeat(8, 1)))
        job.finish()
    assert list(tmp_path.iterdir()) == []
