"""Reading untrusted files: FFmpeg runs in a process that can neither harm nor outlive this one.

The frames, times and descriptions are those of the reader in this process, bit for bit. What comes
over the pipe is checked like a file from a stranger; see :mod:`psssr_fast.video.wire`.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from psssr_fast.errors import InputError, PsssrError, UsageError
from psssr_fast.video import _spawn, wire
from psssr_fast.video._patience import Patience
from psssr_fast.video._values import FrameCheck, check, check_info, check_notes, file_size
from psssr_fast.video.images import is_image_source, list_images
from psssr_fast.video.info import Frame, VideoInfo
from psssr_fast.video.limits import DEFAULT_LIMITS, Limits

_INFO_BYTES = 2**20  # of arrays in a description, which has none


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
        self.size = file_size(Path(path))
        self._process, self.end = _spawn.start(self, content)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        self._patience = Patience(self._process.pid, allowance.seconds, self.size)
        self._messages = self._beats = 0
        self.missing: tuple[str, ...] = ()  # of its confinement

    def receive(self, hints: dict[int, Any], max_bytes: int) -> tuple[int, Any]:
        """The next message of one of these kinds, and its value.

        Args:
            hints: the type of the value, by kind.
            max_bytes: of an array in it.

        Raises:
            InputError: it is an error; or the process crashed, hangs, or sent something else.
        """
        unpacker = wire.Unpacker(self._read, max_bytes)
        self._patience.begin()
        with self.judging():
            while True:
                kind, content = unpacker.message()
                self._messages += 1
                if kind in hints:
                    value = unpacker.value(hints[kind], content)
                    self._patience.end()
                    return kind, value
                self._take(kind, unpacker, content)

    def _take(self, kind: int, unpacker: wire.Unpacker, content: Any) -> None:
        """Take a message that is no answer."""
        if kind == wire.ERROR:
            check(type(content["message"]) is str, "no message")
            error = UsageError if content["code"] == UsageError.exit_code else InputError
            raise error(_one_line(content["message"]))
        if kind == wire.NOTE:  # first of all, before it looks at the file
            check(self._messages == 1, "a message out of turn")
            self.missing = unpacker.value(tuple[str, ...], content)
            return
        # An honest process says that it is at work once a second, and before its answer only.
        self._beats += 1
        check(kind == wire.BEAT, "a message out of turn")
        check(self._messages == self._beats + bool(self.missing), "a message out of turn")
        check(self._beats <= self._patience.elapsed + 1, "a message too soon")

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Turn whatever goes wrong with what the process sent into an InputError."""
        try:
            yield
        except (PsssrError, MemoryError):  # no more memory is asked for than a frame takes
            self.end()
            raise
        # Whoever has taken the process over chooses what goes wrong here: any error is theirs.
        except Exception as error:
            what = f"sent what is no video ({_one_line(error)[:80]})"
            raise InputError(self._failed(what)) from error

    def _read(self, buffer: memoryview) -> None:
        waiting = select.poll()
        waiting.register(self._pipe, select.POLLIN)
        while buffer:
            moved = bool(waiting.poll(1000 * self._patience.until_look))
            fault = self._patience.fault(moved)
            if fault is not None:
                raise InputError(self._failed(fault))
            if moved:
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

    def describe(self, is_images: bool, limits: Limits) -> VideoInfo:
        """The description that it sends first, checked, under the path that was asked for."""
        info = self.receive({wire.INFO: VideoInfo}, _INFO_BYTES)[1]
        with self.judging():
            info = replace(info, path=Path(self._path))  # what it names is never opened
            info = check_info(info, is_images, limits)
        notes = tuple(map(_one_line, info.warnings))
        if self.missing:
            what = _one_line(", ".join(self.missing))
            notes = (*notes, f"the sandbox is weaker than it should be on this system: {what}")
        return replace(info, warnings=notes)


def _one_line(message: object) -> str:
    text = str(message)[:2000]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def probe_confined(
    path: str | Path, frame_rate: Fraction, limits: Limits, allowance: Allowance = Allowance()
) -> VideoInfo:
    """:func:`psssr_fast.video.probe` in a confined process.

    Raises:
        InputError: as there; or it made the process crash, hang or run out of memory, or the
            process sent values that no video has.
    """
    request = {"only_probe": True, "frame_rate": str(frame_rate)}
    process = _Process(path, request, limits, allowance)
    try:
        return process.describe(is_image_source(path), limits)
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
        is_images = is_image_source(path)
        names = [file.name for file in list_images(path)] if is_images else None
        self._process = _Process(path, request, limits, allowance)
        try:
            self.info = self._process.describe(is_images, limits)
        except BaseException:
            self._process.end()
            raise
        self._limits = limits
        self._pictures = len(names or ())
        self._check = FrameCheck(self.info, names, self._process.size, limits)
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
        while True:
            kind, value = self._process.receive(hints, self._check.frame_bytes)
            with self._process.judging():
                if kind == wire.END:
                    check_notes(value, self._pictures, self._limits)
                    notes = (*self.info.warnings, *map(_one_line, value))
                    self._warnings = tuple(dict.fromkeys(notes))
                    return
                value = self._check.accept(value)
            yield value
