"""Kill a job anywhere, run the same command again: the same bytes, and nothing else left."""

import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import pictures, write_frames
from job_fixtures import KILLED, SMALL, digest, folder_of, frame_times, journal_of, write_clip
from PIL import Image

from psssr_fast.jobs import POINTS
from psssr_fast.video import open_reader
from psssr_fast.video.image_writer import PARTIAL_FRAME

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_all_points_are_listed():
    found = set()
    for path in (ROOT / "psssr_fast/jobs").glob("*.py"):
        found |= set(re.findall(r'fault\(f?"([^"]+)"\)', path.read_text()))
    found.remove("{Path(name).stem}-written")
    assert found | {"plan-written", "done-written"} == set(POINTS)


@pytest.mark.parametrize("point", [point for point in POINTS if not point.startswith("image-")])
def test_killed_at_every_pass_of_every_point(forks, clip, whole, tmp_path, point):
    """Killed at the first, second, third, ... pass, until there is none."""
    command, output = (clip, "-o", "out.mp4", *SMALL), tmp_path / "out.mp4"
    for number in range(1, 20):
        done = forks(*command, folder=tmp_path, fault=f"{point}:{number}:kill")
        if done.code == 0:
            break
        assert done.code == KILLED
        kept = len(journal_of(output))
        done = forks(*command, "--json", folder=tmp_path)
        if point == "cleared":  # the output was complete, and all that was left an empty folder
            assert (done.code, "out.mp4: exists already" in done.err) == (6, True)
        else:
            assert done.code == 0, done.err
            assert f'"resumed_frames": {min(6 * kept, 14)}' in done.out or kept == 0
        assert names(tmp_path) == {"out.mp4"}
        assert digest(output) == digest(whole)
        output.unlink()
    assert number > 1, "the point was never passed"
    assert digest(output) == digest(whole)


@pytest.mark.parametrize(
    "point",
    ["image-written", "journal-half", "journaled", "image-renamed", "noted", "clearing"],
)
def test_frames_of_a_folder_survive_a_kill(forks, tmp_path, point):
    frames = write_frames(tmp_path / "frames", 7)
    assert forks("frames", "-o", "whole/", *SMALL, folder=tmp_path).code == 0
    command = ("frames", "-o", "out/", *SMALL)
    for number in (1, 3):
        done = forks(*command, folder=tmp_path, fault=f"{point}:{number}:kill")
        if done.code == 0:
            break
        before = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("[!.]*.png")}
        kept = journal_of(tmp_path / "out")
        partial = tmp_path / "out" / PARTIAL_FRAME
        if kept and partial.exists():  # in the journal, and without its name as yet
            before.setdefault(kept[-1]["file"], partial.stat().st_ino)
        done = forks(*command, folder=tmp_path)
        assert done.code == 0, done.err
        after = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
        assert all(before[chunk["file"]] == after[chunk["file"]] for chunk in kept)
        assert names(tmp_path) == {frames.name, "whole", "out"}
        assert digest(tmp_path / "out") == digest(tmp_path / "whole")
        for path in (tmp_path / "out").iterdir():
            path.unlink()


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".webm"])
def test_killed_at_random_times_with_variable_rate_and_two_sounds(forks, tmp_path, suffix):
    rng = random.Random(suffix)
    pts = [0, 40, 80, 500, 520, 540, 600, 640, 2000, 2001, 2002, 2040, 2080, 2120, 2160, 2200]
    clip = write_clip(tmp_path / "clip.mkv", pts, sounds=0 if suffix == ".webm" else 2)
    assert forks(clip, "-o", f"whole{suffix}", *SMALL, folder=tmp_path).code == 0
    output = tmp_path / f"out{suffix}"
    kills = 0
    while True:
        delay = rng.uniform(0.05, 1.2)
        done = forks(
            clip, "-o", output.name, *SMALL, folder=tmp_path, signals=[(delay, signal.SIGKILL)]
        )
        if done.code != KILLED:
            break
        kills += 1
    assert done.code == 0 or "exists already" in done.err
    assert digest(output) == digest(tmp_path / f"whole{suffix}")
    assert [round(time * 1000) for time in frame_times(output)] == pts
    assert not folder_of(output).exists()


@pytest.mark.parametrize(
    ("number", "changes", "cuts"),
    [(1, (20, 27), [20, 27]), (5, (20, 27), [20, 27]), (5, (23, 25), [])],
)
def test_scenes_begin_where_they_began(forks, tmp_path, number, changes, cuts):
    """Also if a run begins just after a cut, or in a flash, whose end looks like one."""
    clip = write_clip(tmp_path / "clip.mp4", sounds=0, cuts=changes)
    options = (*SMALL, "--scene-cuts", "auto")
    assert forks(clip, "-o", "whole.mp4", *options, folder=tmp_path).code == 0
    output = tmp_path / "out.mp4"
    for fault in (f"journaled:{number}:kill", "assembling:1:kill"):
        assert forks(clip, "-o", "out.mp4", *options, folder=tmp_path, fault=fault).code == KILLED
    assert [cut for chunk in journal_of(output) for cut in chunk["cuts"]] == cuts
    assert forks(clip, "-o", "out.mp4", *options, folder=tmp_path).code == 0
    assert digest(output) == digest(tmp_path / "whole.mp4")


def test_alpha_beside_the_packets_survives(forks, tmp_path):
    """VP9 keeps it in a stream of its own, packet by packet."""
    (tmp_path / "frames").mkdir()
    for index, picture in enumerate(pictures(8)):
        alpha = np.full((*picture.shape[:2], 1), 20 * index, np.uint8)
        image = Image.fromarray(np.concatenate([picture, alpha], axis=2))
        image.save(tmp_path / "frames" / f"{index}.png")
    command = ("frames", "-o", "out.webm", *SMALL, "-s", "2")
    assert forks(*command, folder=tmp_path, fault="journaled:1:kill").code == KILLED
    done = forks(*command, folder=tmp_path)
    assert done.code == 0, done.err
    with open_reader(tmp_path / "out.webm") as reader:
        seen = [frame.alpha for frame in reader]
    assert [abs(int(alpha.mean()) - 20 * i) <= 3 for i, alpha in enumerate(seen)] == [True] * 8
