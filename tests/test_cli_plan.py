"""Which outputs ``psssr upscale`` makes of which inputs."""

import re
from pathlib import Path

import pytest
from cli_fixtures import write_frames

from psssr_fast.commands.plan import Target, plan_jobs
from psssr_fast.errors import OutputError, UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("a/clip.mp4", "a/clip.psssr4x.mp4"),
        ("a/clip.webm", "a/clip.psssr4x.webm"),
        ("clip.MKV", "clip.psssr4x.MKV"),
        ("clip.avi", "clip.psssr4x.mp4"),
        ("clip", "clip.psssr4x.mp4"),
        ("a/%04d.png", "a.psssr4x/"),
    ],
)
def test_default_names_keep_a_suffix_that_can_be_written(source, output):
    (job,) = plan_jobs([source], None, Target(None, None))
    assert (job.input, job.output) == (source, output)


def test_a_folder_of_frames_gets_a_folder_beside_it(folder):
    write_frames(folder / "frames")
    (job,) = plan_jobs(["frames/"], None, Target(2.0, None))
    assert job.output == "frames.psssr2x/"
    (job,) = plan_jobs([str(folder / "frames" / ".." / "frames")], None, Target(2.0, None))
    assert Path(job.output).resolve() == folder / "frames.psssr2x"


def test_a_folder_of_videos_is_each_video_in_it_but_not_what_was_made_of_them(folder):
    videos = folder / "videos"
    videos.mkdir()
    made = ("b.psssr4x.mp4", "b.psssr720p.mkv", ".hidden.mp4", "text.txt")
    for name in ("b.mp4", "a.MOV", *made):
        (videos / name).touch()
    jobs = plan_jobs(["videos"], None, Target(None, None))
    assert [job.input for job in jobs] == ["videos/a.MOV", "videos/b.mp4"]
    jobs = plan_jobs(["videos"], "out", Target(None, None))
    assert [job.output for job in jobs] == ["out/a.psssr4x.MOV", "out/b.psssr4x.mp4"]
    assert (folder / "out").is_dir()


def test_a_folder_of_one_video_still_takes_a_folder_for_output(folder):
    (folder / "videos").mkdir()
    (folder / "videos/a.mp4").touch()
    (job,) = plan_jobs(["videos"], "out", Target(None, None))
    assert job.output == "out/a.psssr4x.mp4"


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["a/x.mp4", "b/x.mp4"], "out", "a/x.mp4 and b/x.mp4 would both become out/x.psssr4x.mp4"),
        (["x.mp4", "./x.mp4"], None, "x.mp4 and ./x.mp4 would both become x.psssr4x.mp4"),
        (["a.mp4", "b.mp4"], "out.mp4", "out.mp4: -o must be a folder, because there are several"),
        (["a.mp4", "b.mp4"], "file", "file: -o must be a folder, because there are several"),
        (["mixed"], None, "mixed: holds both PNG frames and videos"),
    ],
)
def test_plans_that_cannot_be_meant_are_refused(folder, inputs, output, message):
    (folder / "file").touch()
    (folder / "mixed").mkdir()
    (folder / "mixed/a.mp4").touch()
    (folder / "mixed/a.png").touch()
    with pytest.raises(UsageError, match=re.escape(message)):
        plan_jobs(inputs, output, Target(None, None))


def test_a_folder_for_outputs_that_cannot_be_made_is_refused(folder):
    (folder / "file").touch()
    with pytest.raises(OutputError, match="file/out: cannot make the folder: Not a directory"):
        plan_jobs(["a.mp4", "b.mp4"], "file/out", Target(None, None))
