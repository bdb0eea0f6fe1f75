"""Whoever can write beside the output puts things where the job keeps its files: nothing of theirs
or of the user's is deleted, overwritten or waited for."""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from job_fixtures import copy_video, digest, folder_of, journal_of, meanwhile

from psssr_fast.errors import InputError, OutputError
from psssr_fast.jobs import POINTS
from psssr_fast.jobs.place import check_place

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
STRANGER = 65534


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: kinds, modes, owners, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (about.st_mode, about.st_uid, about.st_nlink, about.st_mtime, content)
    return found


@pytest.fixture
def documents(tmp_path) -> Path:
    """A folder of the user, which is not this job's business."""
    folder = tmp_path / "documents"
    (folder / "deep/er").mkdir(parents=True)
    for name in ("thesis.txt", "deep/er/plan.json", "chunk-000000", "lock", "done.json"):
        (folder / name).write_text(f"precious {name}")
    return folder


@pytest.fixture
def work(tmp_path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def make_socket(path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        before = os.getcwd()
        os.chdir(path.parent)  # the names of sockets are short
        server.bind(path.name)
        os.chdir(before)


def of_stranger(path: Path) -> None:
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


FOLDERS: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, documents: path.symlink_to(documents),
    "a link to a link": lambda path, documents: (
        path.with_name("middle").symlink_to(documents),
        path.symlink_to("middle"),
    ),
    "a dangling link": lambda path, documents: path.symlink_to(documents / "nothing"),
    "a link to itself": lambda path, documents: path.symlink_to(path.name),
    "a link to a file": lambda path, documents: path.symlink_to(documents / "thesis.txt"),
    "a file": lambda path, documents: path.write_text("precious"),
    "a hard link": lambda path, documents: os.link(documents / "thesis.txt", path),
    "a FIFO": lambda path, documents: os.mkfifo(path),
    "a socket": lambda path, documents: make_socket(path),
    "open to all": lambda path, documents: (path.mkdir(), path.chmod(0o777)),
    "open to a group": lambda path, documents: (path.mkdir(), path.chmod(0o770)),
    "sticky": lambda path, documents: (path.mkdir(), path.chmod(0o1777)),
}
STRANGERS: dict[str, Callable[[Path, Path], object]] = {
    "another user's": lambda path, documents: (path.mkdir(), of_stranger(path)),
    "another user's link": lambda path, documents: (path.symlink_to(documents), of_stranger(path)),
    "a device": lambda path, documents: os.mknod(path, 0o20666, os.makedev(1, 5)),
}
kinds_of_folder = pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in FOLDERS.items()),
        *(pytest.param(make, id=name, marks=ROOT_ONLY) for name, make in STRANGERS.items()),
    ],
)


@pytest.mark.parametrize("output", ["out.mp4", "out/"])
@kinds_of_folder
def test_a_folder_that_is_not_ours_is_refused_and_left_alone(clip, documents, work, make, output):
    path = folder_of(work / output.rstrip("/"))
    make(path, documents)
    before = snapshot(work.parent)
    with pytest.raises(OutputError, match="not used for the job: ") as refusal:
        check_place(str(work / output), clip)
    assert refusal.value.exit_code == 6
    assert "\n" not in str(refusal.value)
    for resume in (True, False):
        with pytest.raises(OutputError, match="not used for the job: "):
            copy_video(clip, work / output, resume=resume)
    assert snapshot(work.parent) == before


@pytest.fixture
def stopped(clip, work) -> Path:
    """The output of a job of which two chunks are kept."""
    output = work / "out.mp4"
    with pytest.raises(ZeroDivisionError), meanwhile("journaled", lambda: 1 // 0, 2):
        copy_video(clip, output)
    assert len(journal_of(output)) == 2
    return output


def stop_at_the_end(clip: Path, output: Path) -> None:
    with pytest.raises(ZeroDivisionError), meanwhile("noted", lambda: 1 // 0):
        copy_video(clip, output, overwrite=True)


FILES: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, victim: path.symlink_to(victim),
    "a dangling link": lambda path, victim: path.symlink_to(victim.with_name("nothing")),
    "a FIFO": lambda path, victim: os.mkfifo(path),
    "a socket": lambda path, victim: make_socket(path),
    "a folder": lambda path, victim: shutil.copytree(victim.parent, path),
}
FILES_OF_STRANGERS: dict[str, Callable[[Path, Path], object]] = {
    "another user's": lambda path, victim: (path.write_bytes(b"{}"), of_stranger(path)),
    "a device": lambda path, victim: os.mknod(path, 0o20666, os.makedev(1, 5)),
}


@pytest.mark.parametrize(
    "name", ["lock", "plan.json", "journal.jsonl", "done.json", "chunk-000001"]
)
@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in FILES.items()),
        *(pytest.param(make, id=n, marks=ROOT_ONLY) for n, make in FILES_OF_STRANGERS.items()),
    ],
)
def test_a_file_that_is_not_the_jobs_is_refused_and_left_alone(
    clip, documents, stopped, name, make
):
    if name == "done.json":
        stop_at_the_end(clip, stopped)
    path = folder_of(stopped) / name
    path.unlink(missing_ok=True)
    make(path, documents / "thesis.txt")
    before = snapshot(documents.parent)
    with pytest.raises(OutputError, match=f"{name}: not used for the job: it ") as refusal:
        copy_video(clip, stopped)
    assert refusal.value.exit_code == 6
    after = snapshot(documents.parent)
    lock = str(folder_of(stopped) / "lock")  # taken and given back
    assert {**after, lock: ()} == {**before, lock: ()}


@pytest.mark.parametrize("name", ["lock", "journal.jsonl"])
def test_a_file_that_is_written_in_place_has_no_other_name(clip, documents, stopped, name):
    """A hard link, which only this user can have made; but a copy by ``cp -al`` makes such ones."""
    path, precious = folder_of(stopped) / name, documents / "thesis.txt"
    path.unlink()
    os.link(precious, path)
    with pytest.raises(OutputError, match=f"{name}: not used for the job: it is a hard link"):
        copy_video(clip, stopped)
    assert precious.read_text() == "precious thesis.txt"


def test_an_older_folder_that_a_group_may_write_says_how_to_go_on(clip, stopped):
    """Earlier versions made it with the umask; that of many systems lets the user's group write."""
    job = folder_of(stopped)
    job.chmod(0o775)
    with pytest.raises(OutputError, match=f"If all in it is yours, chmod go-w {job}, and run"):
        copy_video(clip, stopped)
    job.chmod(0o755)
    assert copy_video(clip, stopped).resumed == 12


def test_temporary_names_are_never_followed(clip, documents, work):
    """They can be guessed: the number of the process is in them."""
    output, job = work / "out.mp4", folder_of(work / "out.mp4")
    job.mkdir(0o700)
    precious = documents / "thesis.txt"
    for stem in ("plan.json", "chunk-000000", "try", "output", "done.json"):
        (job / f"{stem}.partial-{os.getpid()}").symlink_to(precious)
    copy_video(clip, output)
    frames = work / "frames"
    frames.mkdir()
    (frames / ".psssr-frame.partial").symlink_to(precious)
    copy_video(clip, frames)
    assert precious.read_text() == "precious thesis.txt"
    assert {path.name for path in work.iterdir()} == {"out.mp4", "frames"}
    assert len(list(frames.iterdir())) == 14


def test_what_no_job_makes_stays(clip, documents, stopped, caplog):
    job = folder_of(stopped)
    (job / "notes.txt").write_text("mine")
    (job / "chunk-000000.bak").write_text("mine")
    (job / "deep").mkdir()
    (job / "deep/plan.json").write_text("mine")
    (job / "away").symlink_to(documents)
    for resume in (True, False):
        copy_video(clip, stopped, overwrite=True, resume=resume)
        assert {path.name for path in job.iterdir()} == {
            "notes.txt", "chunk-000000.bak", "deep", "away",
        }  # fmt: skip
    assert "stays, as there are files in it that no job makes" in caplog.text
    assert (job / "deep/plan.json").read_text() == "mine"
    assert len(list(documents.rglob("*"))) == 7
    check_place(stopped, clip, overwrite=True)
    assert (job / "notes.txt").read_text() == "mine"


def test_a_job_folder_is_for_its_user_alone(clip, work):
    modes = set()
    with meanwhile("plan-renamed", lambda: modes.add(folder_of(work / "a.mp4").stat().st_mode)):
        copy_video(clip, work / "a.mp4")
    assert modes == {0o40700}
    os.umask(mask := os.umask(0))
    assert (work / "a.mp4").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("point", [point for point in POINTS if not point.startswith("image-")])
def test_a_folder_that_is_exchanged_at_any_moment_harms_nobody(clip, documents, work, point):
    """Whoever may write in the folder around can rename the job's, and put a link in its place."""
    output, job = work / "out.mp4", folder_of(work / "out.mp4")

    def exchange() -> None:
        if job.is_dir() and not job.is_symlink():
            job.rename(work / "moved")
        else:
            job.unlink(missing_ok=True)
        job.symlink_to(documents)

    before = snapshot(documents)
    with meanwhile(point, exchange), contextlib.suppress(OutputError):
        copy_video(clip, output)
    assert snapshot(documents) == before


def test_the_folder_of_a_removed_job_is_not_taken_for_the_new_one(clip, stopped):
    """Another process has brought the job to its end while this one waited to open the folder."""
    job = folder_of(stopped)

    def finish_first() -> None:
        shutil.rmtree(job)

    with meanwhile("plan-renamed", lambda: None):
        shutil.rmtree(job)
        with meanwhile("folder-made", finish_first):
            copy_video(clip, stopped)
    assert not job.exists()
    assert stopped.exists()


def test_plans_and_journals_are_as_large_as_they_can_be(clip, stopped):
    """A sparse file of gigabytes costs nothing to make."""
    job = folder_of(stopped)
    for name, error in (("plan.json", OutputError), ("lock", OutputError)):
        content = (job / name).read_bytes()
        os.truncate(job / name, 2**36)
        with pytest.raises(error, match="has more than"):
            copy_video(clip, stopped)
        (job / name).write_bytes(content)
    os.truncate(job / "journal.jsonl", 2**36)
    copy_video(clip, stopped)  # read up to the first line that is none


def test_nested_brackets_are_damage_and_not_a_crash(clip, stopped):
    job, deep = folder_of(stopped), b"[" * 200_000
    for content in (deep, b'{"plan":' + b'{"a":' * 5000 + b"1" + b"}" * 5001):
        (job / "plan.json").write_bytes(content)
        with pytest.raises(InputError, match="plan of the unfinished job is damaged"):
            copy_video(clip, stopped)
    (job / "lock").write_bytes(deep[:4000])
    (job / "done.json").write_bytes(deep)
    copy_video(clip, stopped, resume=False)
    assert not job.exists()


def test_two_runs_at_once_make_one_output(clip, work):
    """The second begins at any point of the first."""
    output = work / "out.mp4"
    copy_video(clip, work / "whole.mp4")
    for point in ("plan-renamed", "journaled", "assembled", "noted", "clearing"):
        refusals = []

        def second(refusals=refusals) -> None:
            with pytest.raises(OutputError, match="locked by pid") as refusal:
                copy_video(clip, output)
            refusals.append(refusal.value.exit_code)

        with meanwhile(point, second):
            copy_video(clip, output)
        assert refusals == [6]
        assert digest(output) == digest(work / "whole.mp4")
        output.unlink()
