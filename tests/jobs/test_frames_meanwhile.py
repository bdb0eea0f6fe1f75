"""Folders of PNG frames while others write there: what is not in the journal is not the job's."""

import os
import shutil
from pathlib import Path

import pytest
from cli_fixtures import write_frames
from job_fixtures import copy_video, digest, meanwhile

from psssr_fast.errors import InputError, OutOfMemory, OutputError, UsageError
from psssr_fast.jobs.place import check_place
from psssr_fast.video.image_writer import PARTIAL_FRAME

TAKES = {
    "a file": lambda path: path.write_text("theirs"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
}
FRAME_POINTS = ["folder-made", "plan-renamed", "image-written", "journal-half", "journaled"]


@pytest.mark.parametrize("point", FRAME_POINTS)
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_a_frame_that_appears_meanwhile_is_not_replaced(tmp_path, point, take):
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    copy_video(frames, tmp_path / "whole")

    def appear() -> None:
        output.mkdir(exist_ok=True)
        take(output / "0002.png")

    number = {"image-written": 3, "journal-half": 3, "journaled": 3}.get(point, 1)
    with (
        meanwhile(point, appear, number),
        pytest.raises(OutputError, match=r"exists already|holds"),
    ):
        copy_video(frames, output)
    theirs = output / "0002.png"
    assert theirs.is_symlink() or theirs.read_text() == "theirs"
    if number == 3:  # the job has begun: without their file it goes on, with it never
        with pytest.raises(OutputError, match="exists already"):
            copy_video(frames, output)
        assert theirs.is_symlink() or theirs.read_text() == "theirs"
    theirs.unlink()
    copy_video(frames, output)
    assert digest(output) == digest(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "whole", "out"}


def test_restart_replaces_the_frames_of_the_first_run_and_no_others(tmp_path):
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    with pytest.raises(ZeroDivisionError), meanwhile("image-renamed", lambda: 1 // 0, 2):
        copy_video(frames, output)
    (output / "0003.png").write_text("theirs")
    with pytest.raises(OutputError, match=r"0003\.png: exists already"):
        copy_video(frames, output, resume=False)
    assert (output / "0003.png").read_text() == "theirs"
    (output / "0003.png").unlink()
    copy_video(frames, output, resume=False)
    copy_video(frames, tmp_path / "whole")
    assert digest(output) == digest(tmp_path / "whole")


def stop_after(frames: Path, output: Path, count: int, **options) -> None:
    """Run a job on a folder of frames until so many more have got their names."""
    with pytest.raises(ZeroDivisionError), meanwhile("image-renamed", lambda: 1 // 0, count):
        copy_video(frames, output, **options)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_restart_goes_on(tmp_path, count, again):
    frames, output = write_frames(tmp_path / "frames", 6), tmp_path / "out"
    copy_video(frames, tmp_path / "whole")
    stop_after(frames, output, 4)
    if count:
        stop_after(frames, output, count, resume=False)
    else:
        with pytest.raises(ZeroDivisionError), meanwhile("plan-renamed", lambda: 1 // 0):
            copy_video(frames, output, resume=False)
    copy_video(frames, output, resume=not again)
    assert digest(output) == digest(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "whole", "out"}


def test_an_interrupted_repair_goes_on(tmp_path):
    """A frame in the middle has gone: it and all later ones are made anew, and that is stopped."""
    frames, output = write_frames(tmp_path / "frames", 6), tmp_path / "out"
    copy_video(frames, tmp_path / "whole")
    stop_after(frames, output, 5)
    (output / "0001.png").unlink()
    stop_after(frames, output, 2)
    copy_video(frames, output)
    assert digest(output) == digest(tmp_path / "whole")


@pytest.mark.parametrize("resume", [True, False])
def test_a_frame_that_the_user_has_edited_is_not_replaced(tmp_path, resume):
    frames, output = write_frames(tmp_path / "frames", 6), tmp_path / "out"
    copy_video(frames, tmp_path / "whole")
    stop_after(frames, output, 4)
    (output / "0001.png").write_text("edited")
    with pytest.raises(OutputError, match=r"0001\.png: (not as the unfinished|exists already)"):
        copy_video(frames, output, resume=resume)
    assert (output / "0001.png").read_text() == "edited"
    copy_video(frames, output, overwrite=True, resume=resume)
    assert digest(output) == digest(tmp_path / "whole")


def test_a_folder_of_frames_has_one_writer_whatever_it_is_called(tmp_path):
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    output.mkdir()
    (tmp_path / "alias").symlink_to("out")

    def second() -> None:
        with pytest.raises(OutputError, match="another process writes frames into this folder"):
            copy_video(frames, tmp_path / "alias", overwrite=True)

    with meanwhile("image-written", second, 2):
        copy_video(frames, output)
    copy_video(frames, tmp_path / "whole")
    assert digest(output) == digest(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "whole", "out", "alias"}


def test_a_frame_that_another_program_has_exchanged_is_not_published(tmp_path):
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    copy_video(frames, tmp_path / "whole")

    def exchange() -> None:
        (output / PARTIAL_FRAME).unlink()
        (output / PARTIAL_FRAME).write_text("theirs")

    with meanwhile("journaled", exchange, 2), pytest.raises(OutputError, match="another program"):
        copy_video(frames, output)
    copy_video(frames, output)
    assert digest(output) == digest(tmp_path / "whole")


def test_a_frame_that_is_in_the_journal_gets_its_name_without_being_made_again(tmp_path):
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    with pytest.raises(ZeroDivisionError), meanwhile("journaled", lambda: 1 // 0, 2):
        copy_video(frames, output)
    # As a kill leaves it: an exception on the way removes the file, and the frame is made anew.
    assert not (output / PARTIAL_FRAME).exists()
    shutil.copy(output / "0000.png", output / PARTIAL_FRAME)
    copy_video(frames, output)
    copy_video(frames, tmp_path / "whole")
    assert digest(output) == digest(tmp_path / "whole")


def test_a_folder_of_frames_that_is_moved_meanwhile_is_not_done(tmp_path):
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    copy_video(frames, tmp_path / "whole")

    def move() -> None:
        output.rename(tmp_path / "moved")
        output.mkdir()

    with (
        meanwhile("image-renamed", move, 2),
        pytest.raises(OutputError, match="moved, or replaced by another folder"),
    ):
        copy_video(frames, output)
    output.rmdir()
    (tmp_path / "moved").rename(output)
    copy_video(frames, output)
    assert digest(output) == digest(tmp_path / "whole")


def test_a_folder_in_the_place_of_the_next_frame_is_named(tmp_path):
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    (output / PARTIAL_FRAME).mkdir(parents=True)
    for _ in range(2):  # a writer that failed does not keep the folder locked
        with pytest.raises(OutputError, match=f"{PARTIAL_FRAME}: cannot be removed"):
            copy_video(frames, output)
    assert (output / PARTIAL_FRAME).is_dir()
    (output / PARTIAL_FRAME).rmdir()
    copy_video(frames, output)


@pytest.mark.parametrize("output", ["frames", "alias", "frames/../frames", "deep/.."])
@pytest.mark.parametrize("source", ["frames", "frames/%04d.png", "alias/%04d.png"])
def test_frames_are_never_written_over_the_input(tmp_path, monkeypatch, source, output):
    monkeypatch.chdir(tmp_path)
    frames = write_frames(tmp_path / "frames", 4)
    (tmp_path / "alias").symlink_to("frames")
    (tmp_path / "frames/sub").mkdir()
    (tmp_path / "deep").symlink_to("frames/sub")
    before = digest_of_files(frames)
    with pytest.raises(UsageError, match="the output is the input"):
        check_place(f"{output}/", source, overwrite=True)
    with pytest.raises(UsageError, match="the output is the input"):
        copy_video(Path(source), Path(output), overwrite=True)
    assert digest_of_files(frames) == before


def digest_of_files(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in folder.iterdir() if path.is_file()}


def test_frames_are_never_written_over_an_input_that_comes_later(tmp_path):
    """The name of the output becomes a link to the input after both were looked at."""
    frames, output = write_frames(tmp_path / "frames", 4), tmp_path / "out"
    before = digest(frames)
    with (
        meanwhile("plan-renamed", lambda: output.symlink_to("frames")),
        pytest.raises(UsageError, match="the output is the input"),
    ):
        copy_video(frames / "%04d.png", output, overwrite=True)
    assert digest(frames) == before


@pytest.mark.parametrize("call", ["mkdir", "fsync"])
def test_want_of_memory_is_told_from_a_broken_disk(tmp_path, monkeypatch, call):
    frames, output = write_frames(tmp_path / "frames", 2), tmp_path / "out"

    def fail(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    def act() -> None:
        monkeypatch.setattr(*((Path, "mkdir") if call == "mkdir" else (os, "fsync")), fail)

    point = "plan-renamed" if call == "mkdir" else "image-renamed"  # before the folder, a frame
    with meanwhile(point, act), pytest.raises(OutOfMemory) as refusal:
        copy_video(frames, output)
    assert refusal.value.exit_code == 5
    monkeypatch.undo()
    copy_video(frames, output)


def test_frames_that_change_meanwhile_are_refused(tmp_path):
    frames = write_frames(tmp_path / "frames", 4)
    acts = (
        lambda: (frames / "0001.png").unlink(),
        lambda: shutil.copy(frames / "0003.png", frames / "0000.png"),
        lambda: shutil.copy(frames / "0003.png", frames / "0004.png"),
    )
    for number, act in enumerate(acts):
        with meanwhile("journaled", act, 3), pytest.raises(InputError):
            copy_video(frames, tmp_path / f"out{number}")
        shutil.rmtree(frames)
        write_frames(frames, 4)
