"""Disks that are full or broken, and places where an output cannot be."""

import os
import shutil
import subprocess

import pytest
from job_fixtures import SMALL, digest, folder_of

from psssr_fast.jobs import POINTS
from psssr_fast.jobs.journal import Chunk
from psssr_fast.jobs.space import estimate


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_disk_that_fails_at_any_point_costs_nothing_but_time(
    forks, clip, whole, tmp_path, action
):
    """One job, stopped at one point after the other."""
    command, output = (clip, "-o", "out.mp4", *SMALL), tmp_path / "out.mp4"
    stopped = []
    for point in POINTS:
        done = forks(*command, folder=tmp_path, fault=f"{point}:1:{action}")
        if done.code == 0:
            output.unlink()
            continue
        stopped.append(point)
        assert done.code == 6, done.err
        (line,) = [line for line in done.err.splitlines() if line.startswith("psssr: error")]
        reason = "No space left on device" if action == "enospc" else "Input/output error"
        assert f"out.mp4: cannot be written: {reason}" in line
        assert ("run the same command" in line) if action == "enospc" else ("goes on" in line)
        assert not output.exists() or digest(output) == digest(whole)
    assert set(stopped) >= set(POINTS) - {"image-written", "image-renamed", "cleared"}
    done = forks(*command, folder=tmp_path)
    assert done.code == 0 or "exists already" in done.err
    assert digest(output) == digest(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.fixture
def small_disk(tmp_path):
    """A function that gives a folder a disk of its own, of so many kB, or makes that larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int):
        option = "remount," if os.path.ismount(folder) else ""
        order = ["mount", "-t", "tmpfs", "-o", f"{option}size={size}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(order, capture_output=True).returncode:
            pytest.skip("this user may not mount a small disk")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_more_room_is_all_it_needs(forks, clip, tmp_path, small_disk):
    command = (clip, "-o", "out.mp4", *SMALL, "--crf", "0")
    assert forks(*command, folder=tmp_path).code == 0
    refused = 0
    for size in range(16, 1000, 12):
        folder = small_disk(size)
        done = forks(*command, folder=folder)
        if done.code == 0:
            break
        refused += 1
        assert done.code == 6, done.err
        (line,) = [line for line in done.err.splitlines() if line.startswith("psssr: error")]
        assert "out.mp4" in line
        assert "Free some space and run the same command again" in line
        assert "needed" in line
        assert not (folder / "out.mp4").exists()
    assert refused >= 3
    assert digest(folder / "out.mp4") == digest(tmp_path / "out.mp4")
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]


def test_too_little_room_is_foreseen(forks, clip, small_disk):
    folder = small_disk(256)
    command = (clip, "-o", "out.mp4", "-s", "16", "--window", "1x64x64", "--overlap", "0x0")
    done = forks(*command, "--chunk-frames", "1", folder=folder, fault="chunk-encoded:1:int")
    assert "will be needed; there are" in done.err, done.err


def test_what_is_left_to_write_is_told_from_what_is_written():
    chunks = [Chunk(0, "chunk-000000", "", 1000, 10, tuple(range(10)), 10)]
    assert estimate((64, 36), 40, False, chunks) == 1000 + 2 * 3000
    assert estimate((64, 36), 40, True, chunks) == 3000
    assert estimate((64, 36), None, False) is None
    assert estimate((64, 36), 40, False) > 0


@pytest.mark.parametrize("kind", ["the input", "a folder", "a pipe", "in no folder", "there"])
def test_what_cannot_be_an_output_is_refused_before_a_model_is_loaded(forks, clip, tmp_path, kind):
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    shutil.copy(clip, source)
    before = source.read_bytes()
    match kind:
        case "the input":
            output = source
        case "a folder":
            output.mkdir()
            (output / "old.png").write_bytes(b"precious")
        case "a pipe":
            os.mkfifo(output)
        case "in no folder":
            output = tmp_path / "missing/out.mp4"
        case "there":
            output.write_bytes(b"precious")
    done = forks(source, "-o", output, "--model", "no such model", folder=tmp_path)
    assert done.code == (2 if kind == "the input" else 6), done.err
    assert "no such model" not in done.err
    assert source.read_bytes() == before
    assert not folder_of(output).exists()
