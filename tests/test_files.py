"""Folders and files where others may write."""

import ctypes
import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from psssr_fast.files import (
    Folder,
    NotRegular,
    is_plain_name,
    make_folders,
    open_input,
    path_to,
    whole_file,
)
from psssr_fast.files import folder as folders

WAYS = ("renameat2", "link", "look")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    """Each way to give a file a name that nobody has: systems know one or another."""
    if request.param != "renameat2":

        def refuse(*arguments):
            ctypes.set_errno(errno.ENOSYS)
            return -1

        monkeypatch.setattr(folders, "_renameat2", lambda: refuse)
    if request.param == "look":

        def no_links(*arguments, **options):
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", no_links)
    return request.param


@pytest.mark.parametrize("taken", ["a file", "a dangling link", "a folder", "nothing"])
def test_publishing_never_replaces_unasked(tmp_path, way, taken):
    (tmp_path / "job").mkdir()
    (tmp_path / "job/new").write_text("new")
    place = tmp_path / "out"
    match taken:
        case "a file":
            place.write_text("old")
        case "a dangling link":
            place.symlink_to("nowhere")
        case "a folder":
            place.mkdir()
    with Folder(tmp_path / "job") as job, Folder(tmp_path) as parent:
        if taken == "nothing":
            job.publish("new", parent, "out")
            assert place.read_text() == "new"
            assert job.names() == []
            assert place.stat().st_nlink == 1
        else:
            with pytest.raises(FileExistsError):
                job.publish("new", parent, "out")
            assert job.names() == ["new"]
            assert place.is_symlink() or place.is_dir() or place.read_text() == "old"
        if taken in ("a file", "a dangling link"):
            job.publish("new", parent, "out", replace=True)
            assert place.read_text() == "new"
            assert not place.is_symlink()


@pytest.mark.parametrize("way", WAYS[:2], indirect=True)
def test_of_many_that_publish_at_once_one_does(tmp_path, way):
    names = [f"new{number}" for number in range(8)]
    for name in names:
        (tmp_path / name).write_text(name)
    barrier, done = threading.Barrier(len(names)), []

    def publish(name: str) -> None:
        with Folder(tmp_path) as folder:
            barrier.wait()
            try:
                folder.publish(name, folder, "out")
                done.append(name)
            except FileExistsError:
                pass

    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert (tmp_path / "out").read_text() == done[0]
    assert len(list(tmp_path.iterdir())) == len(names)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b", "../a"])
def test_names_are_names_and_no_paths(tmp_path, name):
    assert not is_plain_name(name)
    with Folder(tmp_path) as folder, pytest.raises(ValueError, match="not the name of a file"):
        folder.create(name)


@pytest.mark.parametrize("name", ["a", ".a", "...", " ", "\n", "ä", "-rf", "a.b"])
def test_odd_names_are_names(tmp_path, name):
    with Folder(tmp_path) as folder:
        os.close(folder.create(name))
        os.close(folder.open_regular(name, writing=True))
        assert folder.names() == [name]
        folder.unlink(name)
        folder.unlink(name)
        assert folder.names() == []


def test_a_folder_stays_the_same_when_its_name_is_given_away(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    with Folder(tmp_path / "mine") as folder:
        (tmp_path / "mine").rename(tmp_path / "moved")
        (tmp_path / "mine").symlink_to("theirs")
        os.close(folder.create("file"))
        with pytest.raises(NotADirectoryError):
            Folder(tmp_path / "mine", follow=False)
    assert (tmp_path / "moved/file").exists()
    assert list((tmp_path / "theirs").iterdir()) == []


def test_creating_follows_nothing(tmp_path):
    (tmp_path / "link").symlink_to("victim")
    with Folder(tmp_path) as folder:
        with pytest.raises(FileExistsError):
            folder.create("link")
        with pytest.raises(NotRegular, match="is a link, not a regular file"):
            folder.open_regular("link")
    assert not (tmp_path / "victim").exists()


def test_a_name_that_becomes_a_link_between_looking_and_opening_is_refused(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").write_text("mine")
    real = os.open

    def late(path, flags, *more, **options):
        (tmp_path / "file").unlink()
        (tmp_path / "file").symlink_to("victim")
        return real(path, flags, *more, **options)

    with Folder(tmp_path) as folder:
        monkeypatch.setattr(os, "open", late)
        with pytest.raises(NotRegular):
            folder.open_regular("file", writing=True)


@pytest.mark.parametrize("replace", [False, True])
def test_a_whole_file_is_there_completely_or_not_at_all(tmp_path, replace):
    path = tmp_path / "file"
    with pytest.raises(ZeroDivisionError), whole_file(path, replace) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with whole_file(path, replace) as file:
        file.write(b"who")
        file.flush()
        with path_to(file, path).open("ab") as again:
            again.write(b"le")
    assert path.read_bytes() == b"whole"
    if replace:
        with whole_file(path, replace) as file:
            file.write(b"another")
        assert path.read_bytes() == b"another"
        return
    with pytest.raises(FileExistsError), whole_file(path, replace):
        pytest.fail("entered")
    path.unlink()
    with pytest.raises(FileExistsError), whole_file(path, replace) as file:
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_file_keeps_its_mode_and_a_device_stays_one(tmp_path):
    private, fifo = tmp_path / "private", tmp_path / "fifo"
    private.write_text("old")
    private.chmod(0o600)
    with whole_file(private, replace=True) as file:
        file.write(b"new")
    assert (private.read_text(), private.stat().st_mode & 0o777) == ("new", 0o600)
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(fifo, replace=True) as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    (tmp_path / "null").symlink_to("/dev/null")
    with whole_file(tmp_path / "null", replace=True) as file:
        file.write(b"nothing")
    assert (tmp_path / "null").is_char_device()
    for name in ("..", ".", "/"):
        with pytest.raises(IsADirectoryError), whole_file(Path(name), replace=True):
            pytest.fail("entered")


def test_a_link_is_replaced_and_not_what_it_names(tmp_path):
    (tmp_path / "precious").write_text("theirs")
    (tmp_path / "file").symlink_to("precious")
    with whole_file(tmp_path / "file", replace=True) as file:
        file.write(b"ours")
    assert (tmp_path / "precious").read_text() == "theirs"
    assert (tmp_path / "file").read_text() == "ours"


def test_folders_are_synced_into_theirs(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def record(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    make_folders(tmp_path / "a/b/c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    make_folders(tmp_path / "a/b/c")
    assert len(synced) == 3
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "file/deep")


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a folder"])
def test_opening_an_input_waits_for_nobody(tmp_path, kind):
    path = tmp_path / "input"
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a folder":
            path.mkdir()
    with pytest.raises(NotRegular, match=f"it is {kind}, not a regular file"):
        open_input(path)
    path = tmp_path / "link"
    (tmp_path / "file").write_text("content")
    path.symlink_to("file")
    with open_input(path) as file:
        assert file.read() == b"content"


def test_whose_a_folder_is(tmp_path):
    with Folder(tmp_path) as folder:
        for mode, reason in ((0o755, None), (0o775, "other users may write in it"), (0o700, None)):
            tmp_path.chmod(mode)
            found = folder.foreign_to(os.geteuid())
            assert (found is None) if reason is None else found.startswith(reason)
        assert folder.names() == []


def test_a_disk_without_owners_and_modes_shows_the_same_for_all(tmp_path, monkeypatch):
    """As exFAT or a share does: there, what a file of one's own looks like is what counts."""
    real = os.fstat

    def squashed(descriptor):
        found = list(real(descriptor))
        found[0] |= 0o777
        found[4] = 4242
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", squashed)
    with Folder(tmp_path) as folder:
        assert folder.foreign_to(os.geteuid()) is None
        monkeypatch.setattr(folder, "_try_file", lambda: real(folder.descriptor))
        assert folder.foreign_to(os.geteuid()) == "it belongs to another user (number 4242)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_be_written_but_not_read_is_good_enough():
    """A drop box; root may read anything, so this runs as somebody else."""
    box = Path(tempfile.mkdtemp())
    box.chmod(0o1733)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setresuid(65534, 65534, 65534)
            with Folder(box) as folder, Folder(box) as same:
                os.close(folder.create("partial"))
                folder.publish("partial", same, "file")
                folder.sync()
                code = 2 if folder.stat("file") is None else 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert [path.name for path in box.iterdir()] == ["file"]
    shutil.rmtree(box)
