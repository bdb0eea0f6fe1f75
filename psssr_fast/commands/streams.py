"""The standard streams of ``psssr``: closed, full or without a reader, they decide over no job."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast


def open_descriptors() -> None:
    """Open the descriptors 0, 1 and 2 on the null device where they are closed.

    The next file that is opened would get their number otherwise, and what is printed would end up
    in it. Processes that are started from here are kept from that, too.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(opened, True)


class SafeStream(io.TextIOBase):
    """Passes text on to a stream, and drops what cannot be written.

    Args:
        stream: where to write; ``None`` if it was closed when Python started.
        retries: whether to go on after a failure. A log is worth it, a result with a hole is not.

    Attributes:
        failure: why something was dropped first; ``None`` while nothing was.
    """

    def __init__(self, stream: TextIO | None, retries: bool) -> None:
        self._stream = stream
        self._retries = retries
        self._written = False
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Write or drop ``text``."""
        if not isinstance(text, str):
            raise TypeError(f"write() needs a str; got {type(text).__name__}")
        if text and self._goes_on():
            self._written = True
            try:
                if self._stream is None:
                    raise OSError(errno.EBADF, "it is closed")
                self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
                self.failure = self.failure or error
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        """Write or drop every line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Have what was written arrive, or drop it."""
        if self._stream is not None and self._written and self._goes_on():
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self.failure = self.failure or error

    def finish(self) -> None:
        """Flush; if that fails, leave nothing that Python would try to write when it ends."""
        self.flush()
        stream = self._stream
        ours = stream is sys.__stdout__ or stream is sys.__stderr__  # of this process
        if self.failure is None or stream is None or not ours:
            return
        with contextlib.suppress(OSError, ValueError):
            stream.flush()  # of a log: the failure may have passed
            return
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def writable(self) -> bool:
        """Return ``True``: text that cannot be written is dropped."""
        return True

    def fileno(self) -> int:
        """The descriptor of the stream; OSError if there is none."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # TextIOBase has a plain attribute
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _goes_on(self) -> bool:
        return self.failure is None or self._retries


@contextlib.contextmanager
def safe_streams() -> Iterator[SafeStream]:
    """Put a :class:`SafeStream` in place of ``sys.stdout``, which is given, and of ``sys.stderr``.

    Characters that their encodings do not have are escaped.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # a name may be in any encoding
    out, log = SafeStream(before[0], retries=False), SafeStream(before[1], retries=True)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", log)
    try:
        yield out
    finally:
        out.finish()
        log.finish()
        sys.stdout, sys.stderr = before
