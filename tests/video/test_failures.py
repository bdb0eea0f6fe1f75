"""Outputs that cannot be: refused in one line before the work, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from psssr_fast.errors import OutputError, UsageError
from psssr_fast.video import (
    EncoderSettings,
    Frame,
    check_output,
    open_reader,
    open_writer,
    probe,
)

FAST = EncoderSettings(preset="veryfast")


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
    info = probe(sample("aspect.mp4"))
    with (
        pytest.raises(error, match=words),
        open_writer(tmp_path / "out.mp4", info, 64, 48, EncoderSettings(**settings)),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_size_is_refused_before_any_frame(tmp_path, sample):
    info = probe(sample("one_frame.mp4"))
    with (
        pytest.raises(OutputError, match="libx264 refuses 40000x20"),
        open_writer(tmp_path / "out.mp4", info, 40000, 20),
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
        pytest.raises(OutputError, match=r"/proc/out\.mp4: cannot be written"),
        open_writer("/proc/out.mp4", probe(sample("one_frame.mp4")), 64, 48),
    ):
        pytest.fail("entered")


def test_a_failure_leaves_what_was_there_before_and_nothing_else(tmp_path, sample):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    with (
        pytest.raises(ZeroDivisionError),
        open_reader(sample("cfr.mp4")) as reader,
        open_writer(output, reader.info, 64, 48, FAST, overwrite=True) as writer,
    ):
        for frame in reader:
            writer.write(frame)
        assert [path.name for path in tmp_path.iterdir() if "partial" in path.name]
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert output.read_bytes() == b"precious"


def test_an_existing_output_is_replaced_only_when_asked(tmp_path, sample, transcode):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        transcode(sample("one_frame.mp4"), output)
    with open_reader(sample("one_frame.mp4")) as reader:
        writer = open_writer(output, reader.info, 64, 48, overwrite=True)
        with writer:
            for frame in reader:
                writer.write(frame)
    assert probe(output).frames == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_video_without_frames_is_an_error(tmp_path, sample):
    with (
        pytest.raises(OutputError, match="no frame was written"),
        open_writer(tmp_path / "out.mp4", probe(sample("cfr.mp4")), 64, 48),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_size_or_out_of_order_are_refused(tmp_path, sample):
    info = probe(sample("aspect.mp4"))
    with open_writer(tmp_path / "out.mp4", info, 64, 48, FAST) as writer:
        writer.write(Frame(np.zeros((48, 64, 3), np.uint8), 5, None, "a.png"))
        with pytest.raises(UsageError, match=r"the output needs \(48, 64, 3\)"):
            writer.write(Frame(np.zeros((48, 60, 3), np.uint8), 6, None, "a.png"))
        with pytest.raises(UsageError, match="timestamps must grow"):
            writer.write(Frame(np.zeros((48, 64, 3), np.uint8), 5, None, "a.png"))


SCRIPT = """
import json, os, resource, signal, sys
from psssr_fast.errors import OutputError
from psssr_fast.video import EncoderSettings, open_reader, open_writer

source, output, limit, kill = json.loads(sys.argv[1])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with open_reader(source) as reader:
        lossless = EncoderSettings(crf=0, preset="ultrafast", options=(("tune", "zerolatency"),))
        with open_writer(output, reader.info, 512, 384, lossless) as writer:
            for frame in reader:
                pixels = frame.pixels.repeat(8, 0).repeat(8, 1)
                writer.write(type(frame)(pixels, frame.pts, frame.duration, frame.name))
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
except OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def run_script(source, output, limit=0, kill=False):
    arguments = json.dumps([str(source), str(output), limit, kill])
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments], capture_output=True, text=True, check=False
    )


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path, sample):
    done = run_script(sample("cfr.mp4"), tmp_path / "out.mp4", limit=20_000)
    assert done.returncode == 6, done.stderr
    assert f"{tmp_path}/out.mp4: cannot be written: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_output_under_its_name(tmp_path, sample):
    done = run_script(sample("cfr.mp4"), tmp_path / "out.mp4", kill=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.mp4").exists()
    assert all(path.name.startswith(".out.partial-") for path in tmp_path.iterdir())
