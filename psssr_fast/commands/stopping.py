"""Ctrl-C and SIGTERM: the first stops in good order, the second at once."""

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_ONE_PRESS = 0.3  # seconds: shells and what starts programs in them often both pass a signal on


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP clean up as Ctrl-C does, and a second signal end the process at once.

    Python itself sees a signal only between two of its steps, one of which may be minutes of a
    network; the second is seen by a thread of its own. After a signal the process is about to end.

    Raises:
        KeyboardInterrupt: on SIGINT.
        SystemExit: on SIGTERM, with code 143, and on SIGHUP, with code 129.
    """
    # A signal that is ignored stays so: that is how a shell protects background jobs from Ctrl-C.
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {
        number: handler
        for number in _STOPPING
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            return
        stopped = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, stop)
    try:
        with _watching(set(before)):
            yield
    finally:
        if stopped:
            atexit.register(_ignore, tuple(before))
        else:
            for number, handler in before.items():
                signal.signal(number, handler)


def _ignore(numbers: tuple[signal.Signals, ...]) -> None:
    """At the very end the interpreter gives signals back their default: a second one on the way
    would change the exit code."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _watching(numbers: set[signal.Signals]) -> Iterator[None]:
    """Have a thread count signals, and end the process at the second."""
    arrived, told = os.pipe()
    os.set_blocking(told, False)
    previous = signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def watch() -> None:
        first: float | None = None
        while content := os.read(arrived, 1):
            if content[0] not in numbers:
                continue
            now = time.monotonic()
            if first is None:
                first = now
            elif now - first > _ONE_PRESS:
                os._exit(128 + content[0])
        os.close(arrived)

    thread = threading.Thread(target=watch, name="psssr-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(told)
        thread.join()
