"""Reading untrusted files: FFmpeg runs in a process that can neither harm nor outlive this one.

The frames, times and descriptions are those of the reader in this process, bit for bit. What comes
over the pipe is checked like a file from a stranger; see :mod:`psssr_fast.video.wire`.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from psssr_fast.errors import InputError, UsageError
from psssr_fast.video import wire
from psssr_fast.video.info import Frame, VideoInfo
from psssr_fast.video.limits import DEFAULT_LIMITS, Limits

_PIPE_BYTES = 2**20  # the most that Linux gives without privileges
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of fcntl(2)
_MAX_SAMPLE_BYTES = 8  # of a pixel: four components of 16 bits
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")


@dataclass(frozen=True)
class Allowance:
    """What the confined process may use.

    Attributes:
        memory: bytes of address space.
        seconds: for opening the file, and for every frame.
    """

    memory: int = 4 * 2**30
    seconds: float = 30


class _Process:
    """One confined process, and the messages that come from it."""

    def __init__(
        self, path: str | Path, request: dict[str, Any], limits: Limits, allowance: Allowance
    ):
        if not hasattr(select, "poll"):
            raise UsageError("--sandbox needs Linux or macOS; leave it out")
        content = {
            **request, "path": str(path), "limits": asdict(limits),
            "memory": allowance.memory, "seconds": allowance.seconds,
        }  # fmt: skip
        self._path = path
        self._seconds = allowance.seconds
        # -P: a numpy.py beside the videos must not be imported
        command = [sys.executable, "-P", "-m", "psssr_fast.video.confined", json.dumps(content)]
        self._process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self.end = weakref.finalize(self, _end, self._process)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        _enlarge(self._pipe)
        self._deadline = 0.0
        self._max_bytes = limits.max_pixels * _MAX_SAMPLE_BYTES

    def receive(self, hints: dict[int, Any]) -> tuple[int, Any]:
        """The next message of one of these kinds, and its value.

        Raises:
            InputError: it is an error; or the process crashed, hangs, or sent something else.
        """
        unpacker = wire.Unpacker(self._read, self._max_bytes)
        while True:
            self._deadline = time.monotonic() + self._seconds
            try:
                kind, content = unpacker.message()
                if kind in hints:
                    return kind, unpacker.value(hints[kind], content)
                if kind == wire.ERROR:
                    error = UsageError if content["code"] == UsageError.exit_code else InputError
                    raise error(_one_line(content["message"]))
                if kind != wire.BEAT:
                    raise ValueError("a message out of turn")
            except (InputError, UsageError):
                raise
            except (ValueError, TypeError, LookupError, ZeroDivisionError, RecursionError) as error:
                raise InputError(self._failed("sent what is no video")) from error

    def _read(self, buffer: memoryview) -> None:
        waiting = select.poll()
        waiting.register(self._pipe, select.POLLIN)
        while buffer:
            left = self._deadline - time.monotonic()
            if left <= 0 or not waiting.poll(1000 * left):
                raise InputError(self._failed(f"gave nothing for {self._seconds:g} s"))
            count = os.readv(self._pipe, [buffer])
            if not count:
                raise InputError(self._failed(self._how_it_ended()))
            buffer = buffer[count:]

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5)
            if code == -signal.SIGXCPU:
                return f"computed for {self._seconds:g} s without a frame"
            if code < 0:
                return f"was ended by {signal.Signals(-code).name}"
        return "ended early"

    def _failed(self, how: str) -> str:
        self.end()
        return (
            f"{self._path}: the confined process that decodes it {how}. The file is damaged or "
            "hostile: get another copy."
        )


def _environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    packages = [str(Path(__file__).parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
    # One thread until it is confined, or Linux gives it no network of its own; and few arenas of
    # malloc, each of which takes 64 MiB of the address space.
    return kept | {
        "PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2",
    }  # fmt: skip


def _enlarge(pipe: int) -> None:
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        if sys.platform == "linux":
            fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE_BYTES)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _one_line(message: object) -> str:
    text = str(message)[:2000]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _named(info: VideoInfo, path: str | Path) -> VideoInfo:
    """With the path that was asked for: what a hostile file names is never opened."""
    return replace(info, path=Path(path))


def probe_confined(
    path: str | Path, frame_rate: Fraction, limits: Limits, allowance: Allowance = Allowance()
) -> VideoInfo:
    """:func:`psssr_fast.video.probe` in a confined process.

    Raises:
        InputError: as there; or it made the process crash, hang or run out of memory.
    """
    request = {"only_probe": True, "frame_rate": str(frame_rate)}
    process = _Process(path, request, limits, allowance)
    try:
        return _named(process.receive({wire.INFO: VideoInfo})[1], path)
    finally:
        process.end()


class ConfinedReader:
    """A :class:`psssr_fast.video.Reader` whose work is done by a confined process.

    Args:
        path, frame_rate, allow_damaged, limits: as for :func:`psssr_fast.video.open_reader`.
        allowance: what the process may use.

    Raises:
        InputError: as :func:`probe_confined`.
    """

    def __init__(
        self,
        path: str | Path,
        frame_rate: Fraction,
        allow_damaged: bool = False,
        limits: Limits = DEFAULT_LIMITS,
        allowance: Allowance = Allowance(),
    ) -> None:
        request = {
            "only_probe": False, "frame_rate": str(frame_rate), "allow_damaged": allow_damaged
        }  # fmt: skip
        self._process = _Process(path, request, limits, allowance)
        try:
            self.info = _named(self._process.receive({wire.INFO: VideoInfo})[1], path)
        except BaseException:
            self._process.end()
            raise
        self._warnings = self.info.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """``info.warnings``, and after the last frame what was noticed while reading."""
        return self._warnings

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.end()

    def __iter__(self) -> Iterator[Frame]:
        hints = {wire.FRAME: Frame, wire.END: tuple[str, ...]}
        size = (self.info.height, self.info.width)
        while True:
            kind, value = self._process.receive(hints)
            if kind == wire.END:
                self._warnings = tuple(map(_one_line, value))
                break
            if value.pixels.shape[:2] != size:
                raise InputError(f"{self.info.path}: a frame of another size than {size}.")
            yield value
