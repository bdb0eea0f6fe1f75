"""How long a confined process is waited for: in its own processor time and in time that passes.

A busy machine lets an honest process wait for a processor, so what counts first is whether it
works at all. What it does with its time nobody can see: therefore the rest is bounded, too.
"""

import os
import time

from psssr_fast.video import _linux

_OVERTIME = 2  # times the processor time allowed: the process ends itself before, if it is honest
_CROWD = 4  # times the time allowed may pass on a busy machine
_BYTES_A_SECOND = 2**20  # of a file that is looked through before the first frame
_LOOK_EVERY = 0.5  # seconds
# Decoding takes one; what it is made of may start one for each processor. No limit of the system
# holds for root, and all processes of the machine have to share the numbers.
_MOST_THREADS = 64 + (os.cpu_count() or 1)


class Patience:
    """Decides when a process has taken too long, or too much.

    For each message it may take ``seconds`` without giving a byte or computing; twice that of
    processor time; and four times that altogether. Over the whole file it may take ``seconds`` for
    each message and four times that once. Until the first message it may take a second more for
    each MiB of the file.

    Args:
        pid: of the process.
        seconds: for a message.
        size: bytes of the file.
    """

    def __init__(self, pid: int, seconds: float, size: int) -> None:
        self._pid = pid
        self._seconds = seconds
        self._allowed = seconds + size / _BYTES_A_SECOND  # for the message that is waited for
        self._left = _CROWD * self._allowed  # for all that come
        self._started = self._begin = self._alive = time.monotonic()
        self._used_before = self._used = 0.0

    @property
    def until_look(self) -> float:
        """Seconds after which to look again."""
        return min(_LOOK_EVERY, self._seconds / 4)

    @property
    def elapsed(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self._started

    def begin(self) -> None:
        """A message is waited for from now on."""
        self._begin = self._alive = time.monotonic()
        self._used_before = self._used = self._processor_time()

    def end(self) -> None:
        """The message is here."""
        self._left += self._seconds - (time.monotonic() - self._begin)
        self._allowed = self._seconds

    def fault(self, moved: bool) -> str | None:
        """Return what is wrong if the process has taken too long.

        Args:
            moved: whether it gave a byte since the last call.
        """
        now, used = time.monotonic(), self._processor_time()
        if moved or used > self._used:
            self._alive, self._used = now, used
        threads = _linux.thread_count(self._pid)
        if threads > _MOST_THREADS:
            return f"made {threads} threads"
        if now - self._alive > self._seconds:
            return f"gave nothing for {self._seconds:g} s"
        if used - self._used_before > _OVERTIME * self._allowed:
            return f"computed for {_OVERTIME * self._allowed:.3g} s without a frame"
        if now - self._begin > min(_CROWD * self._allowed, self._left):
            return f"took more than {now - self._begin:.3g} s for a frame"
        return None

    def _processor_time(self) -> float:
        """Seconds that the process has computed; 0 where nobody can tell."""
        if not _linux.IS_LINUX:
            return 0.0
        try:
            return time.clock_gettime(~self._pid << 3 | 2)  # as clock_getcpuclockid(3) makes it
        except OSError:
            return self._used  # it has ended, and reading will tell how
