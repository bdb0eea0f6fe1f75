"""What was looked at when the job began may be something else when it is used."""

import contextlib
import gc
import os
import shutil
import time
from pathlib import Path

import pytest
from job_fixtures import SMALL, copy_video, digest, journal_of, meanwhile, write_clip

from psssr_fast.errors import InputError, OutOfMemory, OutputError, PsssrError
from psssr_fast.files import Folder
from psssr_fast.jobs import POINTS
from psssr_fast.jobs.files import job_folder, storing
from psssr_fast.jobs.input import look_at
from psssr_fast.video import probe

BEFORE_PUBLISHING = POINTS[: POINTS.index("output-renamed")]
VIDEO_POINTS = [point for point in BEFORE_PUBLISHING if not point.startswith("image-")]
TAKES = {
    "a file": lambda path: path.write_text("theirs"),
    "an empty file": lambda path: path.touch(),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
}


@pytest.fixture(scope="module")
def whole_copy(clip, tmp_path_factory) -> Path:
    """What a copy makes that nobody disturbs."""
    output = tmp_path_factory.mktemp("copy") / "out.mp4"
    copy_video(clip, output)
    return output


@pytest.mark.parametrize("point", VIDEO_POINTS)
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_an_output_that_appears_meanwhile_is_not_replaced(clip, whole_copy, tmp_path, point, take):
    output = tmp_path / "out.mp4"
    with (
        meanwhile(point, lambda: take(output)),
        pytest.raises(OutputError, match=r"exists already|not a regular file") as refusal,
    ):
        copy_video(clip, output)
    assert refusal.value.exit_code == 6
    about = output.lstat()
    assert about.st_size in (0, 6, 7) or output.is_dir(), "it was replaced"
    kept = journal_of(output)
    if output.is_dir():
        output.rmdir()
    else:
        output.unlink()
    job = copy_video(clip, output)
    assert job.resumed == sum(chunk["frames"] for chunk in kept)
    assert digest(output) == digest(whole_copy)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_overwrite_replaces_also_what_appears_meanwhile(clip, whole_copy, tmp_path):
    output = tmp_path / "out.mp4"
    with meanwhile("noted", lambda: output.write_text("theirs")):
        copy_video(clip, output, overwrite=True)
    assert digest(output) == digest(whole_copy)


def test_a_link_is_replaced_and_not_what_it_names(clip, whole_copy, tmp_path):
    (tmp_path / "precious").write_text("theirs")
    output = tmp_path / "out.mp4"
    output.symlink_to("precious")
    with pytest.raises(OutputError, match="exists already"):
        copy_video(clip, output)
    copy_video(clip, output, overwrite=True)
    assert (tmp_path / "precious").read_text() == "theirs"
    assert digest(output) == digest(whole_copy)
    assert not output.is_symlink()


CHANGES = {
    "replaced": lambda path, other: (shutil.copy2(other, "new"), os.replace("new", path)),
    "rewritten": lambda path, other: path.write_bytes(other.read_bytes()),
    "cut short": lambda path, other: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"\0" * 9),
    "deleted": lambda path, other: path.unlink(),
    "a folder": lambda path, other: (path.unlink(), path.mkdir()),
    "a FIFO": lambda path, other: (path.unlink(), os.mkfifo(path)),
    "a dangling link": lambda path, other: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("point", ["plan-renamed", "journaled", "assembling", "assembled"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_input_that_changes_meanwhile_is_refused(clip, tmp_path, monkeypatch, point, change):
    """Also if its size and its time are the old ones: the sound would be of the new file."""
    monkeypatch.chdir(tmp_path)
    source, other, output = Path("in.mp4"), Path("other.mp4"), tmp_path / "out.mp4"
    shutil.copy2(clip, source)
    about = source.stat()
    write_clip(other, range(0, 14 * 40, 40), sounds=1, bframes=0)
    os.truncate(other, max(about.st_size, other.stat().st_size))
    os.truncate(other, about.st_size)

    def act() -> None:
        change(source, other)
        if source.is_file():
            os.utime(source, ns=(about.st_atime_ns, about.st_mtime_ns))

    if point == "assembled":  # read completely, and checked
        with meanwhile(point, act), contextlib.suppress(PsssrError):
            copy_video(source, output)
        assert output.exists()
        return
    with meanwhile(point, act), pytest.raises(InputError) as refusal:
        copy_video(source, output)
    assert "\n" not in str(refusal.value)
    assert not output.exists()


def test_an_input_of_which_only_what_is_told_changes_is_the_same(clip, whole_copy, tmp_path):
    """A backup that makes a hard link, an indexer, a copy that replaces the file with itself."""
    source = tmp_path / "in.mp4"
    shutil.copy(clip, source)
    acts = (
        lambda: os.link(source, tmp_path / "backup"),
        lambda: source.chmod(0o600),
        lambda: os.utime(source),
        lambda: (shutil.copy(source, tmp_path / "new"), os.replace(tmp_path / "new", source)),
    )
    for act in acts:
        with meanwhile("journaled", act):
            copy_video(source, tmp_path / "out.mp4")
        assert digest(tmp_path / "out.mp4") == digest(whole_copy)
        (tmp_path / "out.mp4").unlink()


@pytest.mark.parametrize("times", [1, 2, 99])
def test_an_input_that_is_touched_while_its_sound_is_copied(clip, whole_copy, tmp_path, times):
    """Its content decides: the sound is copied once more, and only at last is it given up."""
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    shutil.copy(clip, source)
    left = [times]

    def touch() -> None:
        if left[0]:
            left[0] -= 1
            source.chmod(0o600 + left[0] % 2 * 0o44)

    with meanwhile("assembling", touch, "1+"):
        if times == 99:
            with pytest.raises(InputError, match=r"touched again and again .* are kept"):
                copy_video(source, output)
            left[0] = 0
            assert copy_video(source, output).resumed == 14
        else:
            copy_video(source, output)
    assert digest(output) == digest(whole_copy)
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}


def test_a_folder_in_the_place_of_a_video_costs_no_frames(clip, whole_copy, tmp_path):
    output = tmp_path / "out.mp4"
    with (
        meanwhile("noted", output.mkdir),
        pytest.raises(OutputError, match="a folder of this name exists already") as refusal,
    ):
        copy_video(clip, output)
    assert "--overwrite" not in str(refusal.value), "it would not help"
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="unfinished job makes a video, and now it would be"):
            copy_video(clip, output, overwrite=overwrite)
    output.rmdir()
    assert copy_video(clip, output).resumed == 14
    assert digest(output) == digest(whole_copy)


@pytest.mark.parametrize("point", ["plan-renamed", "journaled", "assembling", "noted"])
@pytest.mark.parametrize("another", [False, True])
def test_a_moved_folder_keeps_its_job(clip, whole_copy, tmp_path, point, another):
    """The folder around the output is renamed; maybe another one gets its name."""
    folder, output = tmp_path / "folder", tmp_path / "folder/out.mp4"
    folder.mkdir()

    def move() -> None:
        folder.rename(tmp_path / "moved")
        if another:
            folder.mkdir()

    with meanwhile(point, move), pytest.raises(OutputError) as refusal:
        copy_video(clip, output)
    assert "its folder was moved, or replaced by another one" in str(refusal.value)
    if another:
        assert list(folder.iterdir()) == []
        folder.rmdir()
    (tmp_path / "moved").rename(folder)
    assert copy_video(clip, output).resumed == 14
    assert digest(output) == digest(whole_copy)
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]


def test_an_output_is_made_where_its_name_leads(clip, whole_copy, tmp_path, monkeypatch):
    """``link/..`` is the folder around the one that the link names, and not around the link."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    (elsewhere / "deep").mkdir(parents=True)
    (here / "link").symlink_to(elsewhere / "deep")
    (here / "out.mp4").write_text("precious")
    monkeypatch.chdir(here)
    for overwrite in (False, True):
        copy_video(clip, Path("link/../out.mp4"), overwrite=overwrite)
        assert (here / "out.mp4").read_text() == "precious"
        assert digest(elsewhere / "out.mp4") == digest(whole_copy)
    assert {path.name for path in elsewhere.iterdir()} == {"deep", "out.mp4"}
    assert job_folder("link/../out.mp4") == job_folder(elsewhere / "out.mp4")


def test_a_job_stays_where_it_began_when_the_current_folder_changes(
    clip, whole_copy, tmp_path, monkeypatch
):
    """As another thread of the same process may do it at any time."""
    here, away = tmp_path / "here", tmp_path / "away"
    here.mkdir()
    away.mkdir()
    monkeypatch.chdir(here)
    shutil.copy(clip, "in.mp4")
    for point in ("plan-renamed", "journaled", "ended", "assembled", "noted"):
        monkeypatch.chdir(here)
        with meanwhile(point, lambda: os.chdir(away)):
            try:
                copy_video(Path("in.mp4"), Path("out.mp4"))
            except InputError:  # the reader looks for the end of its file by the path it was given
                monkeypatch.chdir(here)
                copy_video(Path("in.mp4"), Path("out.mp4"))
        assert digest(here / "out.mp4") == digest(whole_copy)
        (here / "out.mp4").unlink()
    assert list(away.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("step", ["abandon", "is_unfinished", "clear"])
def test_whatever_ends_a_job_it_gives_its_lock_back(
    clip, whole_copy, tmp_path, monkeypatch, step, error
):
    """A second Ctrl-C in a notebook, whose process lives on."""
    output, before = tmp_path / "out.mp4", len(os.listdir("/proc/self/fd"))

    def fail(*arguments, **options):
        patch.undo()  # what is tried again, or by the next run, goes well
        raise error

    places = {
        "abandon": "psssr_fast.jobs.sinks.VideoSink.abandon",
        "is_unfinished": "psssr_fast.jobs.job.is_unfinished",
        "clear": "psssr_fast.jobs.folder.JobFolder.clear",
    }
    with (
        monkeypatch.context() as patch,
        pytest.raises((error, ZeroDivisionError, OutputError)),
        meanwhile("chunk-encoded", lambda: (patch.setattr(places[step], fail), 1 // 0)),
    ):
        copy_video(clip, output)
    copy_video(clip, output)
    assert digest(output) == digest(whole_copy)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_deleted_input_is_bad_input(forks, clip, tmp_path):
    """Through the command line, where anything else would be called a mistake of the program."""
    shutil.copy(clip, tmp_path / "in.mp4")
    begun = forks("in.mp4", "-o", "out.mp4", *SMALL, folder=tmp_path, fault="journaled:1:kill")
    assert begun.code < 0
    (tmp_path / "in.mp4").unlink()
    done = forks("in.mp4", "-o", "out.mp4", *SMALL, folder=tmp_path)
    assert done.code == 3
    assert len(journal_of(tmp_path / "out.mp4")) == 1


@pytest.mark.parametrize("point", POINTS[POINTS.index("noted") :])
def test_a_finished_output_is_known_by_its_content(clip, whole_copy, tmp_path, point):
    """Also on a disk that numbers its files anew, or after a copy to another one."""
    output = tmp_path / "out.mp4"
    with pytest.raises(ZeroDivisionError), meanwhile(point, lambda: 1 // 0):
        copy_video(clip, output)
    if output.exists():
        shutil.copy(output, tmp_path / "new")
        os.replace(tmp_path / "new", output)
    with contextlib.suppress(OutputError):  # nothing is left that tells whose it is
        copy_video(clip, output)
    assert digest(output) == digest(whole_copy)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_an_output_that_was_changed_after_its_end_is_not_taken_for_it(clip, tmp_path):
    output = tmp_path / "out.mp4"
    with pytest.raises(ZeroDivisionError), meanwhile("output-renamed", lambda: 1 // 0):
        copy_video(clip, output)
    content = bytearray(output.read_bytes())
    content[-1] ^= 1
    output.write_bytes(content)
    with pytest.raises(OutputError, match="exists already"):
        copy_video(clip, output)
    assert output.read_bytes() == content


def test_no_memory_and_no_threads_are_told_from_a_broken_disk(tmp_path):
    for number in (11, 12):  # EAGAIN, ENOMEM
        with (
            pytest.raises(OutOfMemory, match=r"out\.mp4: no memory or threads left") as refusal,
            storing(tmp_path / "out.mp4", lambda: None),
        ):
            raise OSError(number, os.strerror(number))
        assert refusal.value.exit_code == 5


def test_looking_at_an_input_reads_nothing(clip, tmp_path):
    source = tmp_path / "in.mp4"
    shutil.copy(clip, source)
    seen = look_at(source)
    assert seen == look_at(source)
    time.sleep(0.02)  # a file system's clock has ticks
    source.chmod(0o600)
    assert look_at(source) != seen
    assert look_at(tmp_path / "none") is None
    assert probe(source).frames == 14
    with Folder(tmp_path) as folder:
        assert folder.names() == ["in.mp4"]
