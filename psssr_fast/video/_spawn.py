"""Starting and ending confined processes, and hiding this process from them meanwhile."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from psssr_fast.video import _linux

_PIPE_BYTES = 2**20  # the most that Linux gives without privileges
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of fcntl(2)
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")

_Popen: TypeAlias = "subprocess.Popen[bytes]"


class _Hiding:
    """Keeps the memory, environment and descriptors of this process from others of its user.

    While it is "not dumpable" (prctl(2)) only root may open them in /proc or attach a debugger, and
    it leaves no core dump. Counted, as several confined processes may run at once.
    """

    def __init__(self) -> None:
        # Finalizers may run at any time, also in a thread that holds the lock.
        self._lock = threading.RLock()
        self._count = 0
        self._before = 0

    def begin(self) -> None:
        """Hide until :meth:`end` was called as often."""
        with self._lock:
            if _linux.IS_LINUX and self._count == 0:
                self._before = _linux.prctl(_linux.GET_DUMPABLE)
                _linux.prctl(_linux.SET_DUMPABLE, 0)
            self._count += 1

    def end(self) -> None:
        """Undo one :meth:`begin`."""
        with self._lock:
            self._count -= 1
            if _linux.IS_LINUX and self._count == 0 and self._before == 1:
                _linux.prctl(_linux.SET_DUMPABLE, 1)


_hiding = _Hiding()


class _Starter:
    """One thread that starts every confined process and lives as long as this process.

    Linux ends a confined process with the thread that started it, so that must not be a thread of
    the caller's, which may end earlier.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._thread: ThreadPoolExecutor | None = None

    def start(self, content: dict[str, Any]) -> _Popen:
        """Start a confined process with a request."""
        with self._lock:
            if self._thread is None or self._pid != os.getpid():  # a fork has no threads
                self._thread = ThreadPoolExecutor(1, "confined-starter")
                self._pid = os.getpid()
            started = self._thread.submit(_popen, content)
        try:
            return started.result()
        except BaseException:  # such as KeyboardInterrupt, while it is starting
            started.add_done_callback(_end_unwanted)
            raise


_starter = _Starter()


def start(owner: object, content: dict[str, Any]) -> tuple[_Popen, "weakref.finalize[Any, Any]"]:
    """Start ``python -m psssr_fast.video.confined`` with a request.

    Args:
        owner: when it is collected, the process is ended.
        content: the request; the number of this process is added.

    Returns:
        The process, with its stdout as a pipe, and what ends it.
    """
    _hiding.begin()
    try:
        process = _starter.start({**content, "parent": os.getpid()})
    except BaseException:
        _hiding.end()
        raise
    assert process.stdout is not None
    _enlarge(process.stdout.fileno())
    return process, weakref.finalize(owner, _end, process)


def _popen(content: dict[str, Any]) -> _Popen:
    # -P: a numpy.py beside the videos must not be imported
    command = [sys.executable, "-P", "-m", "psssr_fast.video.confined", json.dumps(content)]
    return subprocess.Popen(
        command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
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


def _end(process: _Popen) -> None:
    try:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    finally:
        _hiding.end()


def _end_unwanted(started: "Future[_Popen]") -> None:
    if started.exception() is None:
        process = started.result()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
