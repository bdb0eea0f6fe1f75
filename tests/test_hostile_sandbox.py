"""The sandboxed reader: the same frames, and nothing that FFmpeg does there reaches us."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest
from cli_fixtures import HANGS_AFTER, Psssr, write_frames, write_video

from psssr_fast.errors import InputError
from psssr_fast.video import DEFAULT_LIMITS, Frame, Limits, VideoInfo, open_reader, probe, wire
from psssr_fast.video.sandbox import Allowance, ConfinedReader

RATE = Fraction(25)


def damaged(path: Path) -> Path:
    whole = write_video(path, 40, faststart=True).read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


SOURCES = {
    "h264 and sound": lambda p: write_video(p / "a.mp4", 12, audio=True),
    "odd size": lambda p: write_video(p / "a.mkv", 3, (65, 37)),
    "PNG frames": lambda p: write_frames(p / "a", 3),
    "cut off": lambda p: damaged(p / "a.mp4"),
    "no video": lambda p: _no_video(p / "a.mp4"),
}


def _no_video(path: Path) -> Path:
    path.write_text("this is not a video\n" * 50)
    return path


def read(path: Path, **options: object) -> tuple[object, list[Frame], object]:
    """Info, frames, and warnings or the error."""
    frames: list[Frame] = []
    try:
        with open_reader(path, **options) as reader:
            frames.extend(reader)
            return reader.info, frames, reader.warnings
    except InputError as error:
        return None, frames, str(error)


def same(a: Frame, b: Frame) -> bool:
    values = zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)
    return all(np.array_equal(x, y) and type(x) is type(y) for x, y in values)


@pytest.mark.parametrize("kind", SOURCES)
def test_it_reads_the_same(tmp_path, kind):
    path = SOURCES[kind](tmp_path)
    options = [{}, {"allow_damaged": True}] if kind == "cut off" else [{}]
    for option in options:
        info, frames, end = read(path, **option)
        confined = read(path, sandbox=True, **option)
        assert (confined[0], confined[2]) == (info, end)
        assert len(confined[1]) == len(frames)
        assert all(same(a, b) for a, b in zip(confined[1], frames, strict=True))
    if info is not None:
        assert probe(path, sandbox=True) == probe(path)


def test_the_command_line_gives_the_same_bytes(tmp_path, capsys):
    clip, psssr = write_video(tmp_path / "clip.mp4", 3, audio=True), Psssr(capsys)
    plain = psssr("probe", clip, "--json")
    assert psssr("probe", clip, "--json", "--sandbox") == plain
    for name, option in (("a.mp4", ()), ("b.mp4", ("--sandbox",))):
        done = psssr("upscale", clip, "-s", 1, "-o", tmp_path / name, *option)
        assert done.code == 0, done.err
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def children() -> list[psutil.Process]:
    """The confined ones: other tests have processes of their own."""
    found = psutil.Process().children()
    return [process for process in found if "psssr_fast.video.confined" in process.cmdline()]


def child() -> psutil.Process:
    (found,) = children()
    return found


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGBUS])
def test_a_crash_is_one_line(tmp_path, number):
    clip = write_video(tmp_path / "clip.mp4", 200, (320, 180))
    with (
        pytest.raises(InputError, match=f"clip.mp4: .* was ended by {number.name}") as caught,
        open_reader(clip, sandbox=True) as reader,
    ):
        for index, _ in enumerate(reader):
            if index == 3:
                child().send_signal(number)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert not children()


def test_a_hang_is_one_line_and_ends(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 200, (320, 180))
    begin = None
    with (
        pytest.raises(InputError, match=r"clip.mp4: .* gave nothing for 4 s"),
        ConfinedReader(clip, RATE, allowance=Allowance(seconds=4)) as reader,
    ):
        for _ in reader:
            if begin is None:
                child().send_signal(signal.SIGSTOP)
                begin = time.monotonic()
    assert 1 < time.monotonic() - begin < HANGS_AFTER
    assert not children()


def test_too_little_memory_is_one_line(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 3, (1280, 720))
    with (
        pytest.raises(InputError) as caught,
        ConfinedReader(clip, RATE, allowance=Allowance(memory=4 << 20)) as reader,
    ):
        list(reader)
    assert str(clip) in str(caught.value) and "\n" not in str(caught.value)


def test_leaving_early_leaves_no_process(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 50)
    with open_reader(clip, sandbox=True) as reader:
        next(iter(reader))
    assert not children()
    unused = open_reader(clip, sandbox=True)
    assert child().is_running()
    del unused
    assert not children()


def test_it_does_not_outlive_a_killed_parent(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 400, (320, 180))
    code = (
        "import sys, time; from psssr_fast.video import open_reader\n"
        "reader = open_reader(sys.argv[1], sandbox=True)\n"
        "print(reader._process._process.pid, flush=True); time.sleep(3600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(clip)], stdout=subprocess.PIPE, text=True
    ) as parent:
        number = int(parent.stdout.readline())
        assert psutil.pid_exists(number)
        parent.kill()
    until = time.monotonic() + HANGS_AFTER
    while psutil.pid_exists(number) and psutil.Process(number).status() != "zombie":
        assert time.monotonic() < until
        time.sleep(0.05)


ESCAPE = """
import os, socket, subprocess, sys
from psssr_fast.video.confined import Confinement

os.chdir(sys.argv[1])
Confinement(2**30, 5)

def memory():
    return bytearray(2**31)

def run(*arguments):
    return subprocess.run(arguments)

for what, attempt in {
    "socket": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), 2),
    "program": lambda: run("true"), "fork": os.fork, "memory": memory,
    "write": lambda: open("new", "w"), "append": lambda: open("old", "a"),
    "remove": lambda: os.unlink("old"), "rename": lambda: os.rename("old", "new"),
    "kill": lambda: os.kill(os.getppid(), 0),
}.items():
    try:
        attempt()
    except (OSError, MemoryError) as error:
        print(what, "refused")
    else:
        print(what, "done")
print(len(open("old").read()), "read")
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="the filter is for Linux"
)
def test_it_can_read_and_nothing_else(tmp_path):
    (tmp_path / "old").write_text("text")
    done = subprocess.run(
        [sys.executable, "-c", ESCAPE, str(tmp_path), "9"], capture_output=True, text=True
    )
    *attempts, reading = done.stdout.splitlines()
    assert len(attempts) == 9 and all(line.endswith(" refused") for line in attempts), done
    assert reading == "4 read"
    assert (tmp_path / "old").read_text() == "text" and len(list(tmp_path.iterdir())) == 1


def info_of(tmp_path: Path) -> VideoInfo:
    return probe(write_video(tmp_path / "clip.mp4", 2))


class Pipe:
    """Gives bytes that were written before."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, buffer: memoryview) -> None:
        part, self.content = self.content[: len(buffer)], self.content[len(buffer) :]
        if len(part) < len(buffer):
            raise EOFError
        buffer[:] = part


def sent(kind: int, value: object) -> bytes:
    return b"".join(bytes(part) for part in wire.pack(kind, value))


def test_values_come_out_as_they_went_in(tmp_path):
    info = info_of(tmp_path)
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    frame = Frame(pixels, -5, None, "a\udcff\n.png")
    for value in (info, frame):
        unpacker = wire.Unpacker(Pipe(sent(wire.INFO, value)).read, 1000)
        kind, content = unpacker.message()
        back = unpacker.value(type(value), content)
        assert kind == wire.INFO
        assert same(back, value) if isinstance(value, Frame) else back == value


def test_what_a_traitor_sends_is_refused(tmp_path):
    info = info_of(tmp_path)
    whole = bytearray(sent(wire.INFO, info))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        changed = bytearray(whole)
        changed[rng.integers(len(changed))] = rng.integers(256)
        unpacker = wire.Unpacker(Pipe(bytes(changed)).read, 1000)
        try:
            back = unpacker.value(VideoInfo, unpacker.message()[1])
            assert isinstance(back.width, int) and isinstance(back.time_base, Fraction)
        except (ValueError, TypeError, LookupError, ZeroDivisionError, EOFError):
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("uint8", [10**6, 10**6, 3]), ("uint8", [-1, 4, 3]), ("object", [2, 2, 3]),
        ("uint8", [0, 4, 3]), ("uint8", [2.0, 4, 3]), ("uint8", "24"), ("float64", [2, 4, 3]),
    ],
)  # fmt: skip
def test_arrays_of_other_sizes_and_kinds_are_never_made(dtype, shape):
    unpacker = wire.Unpacker(Pipe(bytes(100)).read, 1000)
    with pytest.raises((ValueError, TypeError)):
        unpacker.value(
            np.ndarray[tuple[int, ...], np.dtype[np.uint8]], {"dtype": dtype, "shape": shape}
        )


def test_limits_hold_inside(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 3)
    message = "64x36 are too large"
    with pytest.raises(InputError, match=message):
        open_reader(clip, sandbox=True, limits=Limits(max_pixels=100))
    with pytest.raises(InputError, match=message):
        probe(clip, sandbox=True, limits=Limits(max_pixels=100))
    assert DEFAULT_LIMITS.max_pixels == 8192**2
