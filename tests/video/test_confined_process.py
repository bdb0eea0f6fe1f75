"""How a confined process is started, what is hidden from it, and that it ends with its parent."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from cli_fixtures import HANGS_AFTER, write_frames, write_video

from psssr_fast.errors import InputError
from psssr_fast.video import open_reader, probe
from psssr_fast.video.sandbox import ConfinedReader

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl(2) are of Linux")


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_video(tmp_path / "clip.mp4", 3)


def dumpable() -> int:
    return int(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))


def pid_of(reader: ConfinedReader) -> int:
    return int(reader._process._process.pid)


def count(reader: ConfinedReader) -> int:
    with reader:
        return sum(1 for _ in reader)


@on_linux
def test_this_process_is_hidden_while_one_runs(clip):
    assert dumpable() == 1
    first, second = open_reader(clip, sandbox=True), open_reader(clip, sandbox=True)
    assert dumpable() == 0
    assert count(first) == 3 and dumpable() == 0
    del second
    assert dumpable() == 1
    probe(clip, sandbox=True)
    with pytest.raises(InputError):
        probe(clip.with_name("missing.mp4"), sandbox=True)
    assert dumpable() == 1


@on_linux
def test_hidden_its_own_descriptors_can_still_be_opened(clip, tmp_path):
    with open_reader(clip, sandbox=True), open(tmp_path / "new", "w+") as file:
        assert dumpable() == 0
        number = file.fileno()
        with open(f"/proc/self/fd/{number}", "r+b") as again:
            again.write(b"text")
        assert str(number) in os.listdir("/proc/self/fd")
        assert Path("/proc/self/statm").read_text()
        assert file.read() == "text"


@on_linux
def test_it_does_not_end_with_the_thread_that_opened_it(clip):
    found: list[ConfinedReader] = []
    thread = threading.Thread(target=lambda: found.append(open_reader(clip, sandbox=True)))
    thread.start()
    thread.join()
    assert count(found[0]) == 3


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + HANGS_AFTER
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


PARENT = """
import os, signal, sys
from psssr_fast.errors import InputError
from psssr_fast.video import open_reader
reader = open_reader(sys.argv[1], sandbox=True)
os.kill(reader._process._process.pid, signal.SIGSTOP)
print(reader._process._process.pid, flush=True)
sys.stdin.read()
"""


@on_linux
def test_it_ends_with_its_parent_even_if_it_does_nothing(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 3)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, str(clip)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        wait_until(lambda: psutil.Process(number).status() == "stopped")
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(number) or psutil.Process(number).status() == "zombie")


@on_linux
def test_it_ends_at_once_without_its_parent():
    code = "from psssr_fast.video.confined import Confinement; Confinement(2**30, 9, None, 1)"
    done = subprocess.run([sys.executable, "-P", "-c", code + "; print(1)"], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")


@on_linux
def test_it_has_three_descriptors_and_little_environment(clip, monkeypatch):
    monkeypatch.setenv("SECRET", "of the caller")
    with open(clip, "rb") as file:
        os.set_inheritable(file.fileno(), True)
        reader = open_reader(clip, sandbox=True)
    process = psutil.Process(pid_of(reader))
    if os.getuid() == 0:  # others may not look, as it is hidden, too
        files = {item.resolve() for item in Path(f"/proc/{process.pid}/fd").iterdir()}
        pipes = {item for item in files if item.name.startswith("pipe:")}
        assert files - pipes <= {Path("/dev/null"), clip.resolve()} and len(pipes) == 1
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"SECRET" not in environment and b"PYTHONPATH" in environment
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "\nThreads:\t1\n" in status or "\nSeccomp:\t2\n" in status
    del reader


@pytest.mark.skipif(os.getuid() != 0, reason="giving files away needs root")
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_root_may_read_the_files_of_others(tmp_path, kind):
    if kind == "video":
        path = write_video(tmp_path / "clip.mp4", 3)
        os.chown(path, 12345, 12345)
        path.chmod(0o600)
    else:
        path = write_frames(tmp_path / "frames", 3)
        last = sorted(path.iterdir())[-1]
        os.chown(last, 12345, 12345)
        last.chmod(0o600)
    with open_reader(path, sandbox=True) as reader:
        assert sum(1 for _ in reader) == 3


def test_links_in_a_folder_are_followed(tmp_path):
    folder = write_frames(tmp_path / "frames", 3)
    links = tmp_path / "links"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    whole = tmp_path / "whole"
    whole.symlink_to(links)
    with open_reader(folder) as plain:
        expected = [frame.pixels for frame in plain]
    for source in (links, whole, links / "%04d.png"):
        with open_reader(source, sandbox=True) as reader:
            found = [frame.pixels for frame in reader]
        assert len(found) == 3
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


MISSING = """
import sys
from psssr_fast.video import _landlock, confined
confined.install_filter = lambda: False
_landlock.restrict = lambda readable: False
confined.main()
"""


def test_a_weaker_sandbox_is_said_once(clip, monkeypatch):
    real = subprocess.Popen

    def start(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        if "psssr_fast.video.confined" in command:
            command = [sys.executable, "-P", "-c", MISSING, command[-1]]
        return real(command, **options)

    plain = probe(clip)
    monkeypatch.setattr(subprocess, "Popen", start)
    (weaker,) = probe(clip, sandbox=True).warnings
    assert weaker == (
        "the sandbox is weaker than it should be on this system: no filter of system calls, no "
        "limit on the files that can be read (Landlock)"
    )
    with open_reader(clip, sandbox=True) as reader:
        assert sum(1 for _ in reader) == 3
    assert reader.warnings == (*plain.warnings, weaker)


def test_what_is_missing_is_found_out():
    code = (
        "from psssr_fast.video import confined; confined.install_filter = lambda: False\n"
        "import threading; threading.Thread(target=input, daemon=True).start()\n"
        "found = confined.Confinement(2**30, 9).missing\n"
        "import os; os.write(1, ascii(found).encode()); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, stdin=subprocess.PIPE, text=True
    )
    assert "no filter of system calls" in done.stdout, done
    assert "more than one thread" in done.stdout, done
