"""The process that decodes untrusted files: what it may do, and what it does.

It runs as ``python -m psssr_fast.video.confined REQUEST`` and writes messages of
:mod:`psssr_fast.video.wire` on its stdout. Before it looks at the file it gives up memory,
processor time, writing files and, on Linux, the network, its capabilities, reading other files
(:mod:`psssr_fast.video._landlock`) and all system calls that decoding does not need
(:mod:`psssr_fast.video._seccomp`). What a system does not offer it tells its parent.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from psssr_fast.errors import PsssrError
from psssr_fast.video import _landlock, _linux, wire
from psssr_fast.video._seccomp import install_filter
from psssr_fast.video.container import check_readable, demux, open_media
from psssr_fast.video.images import is_image_source
from psssr_fast.video.limits import UNLIMITED, Limits
from psssr_fast.video.reader import VideoReader, open_reader, probe

_OPEN_FILES = 64
_NEW_NET, _NEW_USER = 0x40000000, 0x10000000  # flags of unshare(2)
_BEAT_EVERY = 1.0  # seconds


class Confinement:
    """Limits of this process, the one on processor time renewed as long as there is progress.

    Args:
        memory: bytes beside those in use now.
        seconds: of processor time without progress.
        readable: files, and folders with all in them, that may still be read; ``None`` is every
            file that this user may read.
        parent: number of the process that this one must not outlive; it ends if that is not its
            parent any more.

    Attributes:
        missing: what this system does not offer, a few words each; empty if all is in place.
    """

    def __init__(
        self,
        memory: int,
        seconds: float,
        readable: Sequence[Path] | None = None,
        parent: int | None = None,
    ) -> None:
        self._seconds = math.ceil(seconds)
        alone = _linux.thread_count() == 1
        _leave_network()
        _limit_resources(memory)
        self.renew()
        walls = _landlock.restrict(readable)
        if _linux.IS_LINUX:
            _drop_capabilities(readable or ())
            _linux.prctl(_linux.SET_DUMPABLE, 0)
        if parent is not None:
            _die_with(parent)
        filtered = install_filter()
        found = {
            "no filter of system calls": filtered,
            "no limit on the files that can be read (Landlock)": walls,
            "more than one thread when it began": alone,
        }
        self.missing = tuple(what for what, good in found.items() if not good)

    def renew(self) -> None:
        """There is progress: the processor time that is left counts from now."""
        with contextlib.suppress(ImportError):
            import resource

            used = math.ceil(time.process_time())
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (used + self._seconds, hard))


def _leave_network() -> None:
    """Move to a network without interfaces, where the system lets us."""
    # Only root may, or the root of a user namespace of its own.
    if _linux.IS_LINUX and not _linux.unshare(_NEW_NET):
        _linux.unshare(_NEW_USER | _NEW_NET)


def _limit_resources(memory: int) -> None:
    """Forbid core dumps and growing files; bound open files and memory."""
    with contextlib.suppress(ImportError):
        import resource

        for kind, limit in (("CORE", 0), ("FSIZE", 0), ("NOFILE", _OPEN_FILES)):
            number = getattr(resource, f"RLIMIT_{kind}")
            resource.setrlimit(number, (limit, limit))
        if os.path.exists("/proc/self/statm"):
            with open("/proc/self/statm") as file:
                mapped = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))


def _drop_capabilities(inputs: Sequence[Path]) -> None:
    """Give up all that root may do beyond others, or that a user namespace of our own gave.

    Reading any file is kept where an input cannot be read otherwise: root may upscale the files of
    others. Landlock then still holds it to the input.
    """
    _linux.drop_bounds()
    permitted = _linux.permitted_capabilities()
    _linux.set_capabilities(0, permitted)
    needed = 0
    if permitted & _linux.READ_ANY_FILE and not all(map(_is_readable, inputs)):
        needed = _linux.READ_ANY_FILE
    _linux.set_capabilities(needed, needed)


def _is_readable(path: Path) -> bool:
    """Tell whether a file, or a folder with its PNG files, can be read now."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if path.is_dir():
            return all(map(_is_readable, _pictures(path)))
    except OSError:
        return False
    return True


def _pictures(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(item) for item in entries if item.name.lower().endswith(".png")]


def _inputs(path: str) -> list[Path]:
    """Return what must be readable: a file; or a folder, and what the links in it lead to."""
    file = Path(path)
    if not is_image_source(file):
        return [file]
    folder = file if file.is_dir() else file.parent
    with contextlib.suppress(OSError):
        return [folder, *(item for item in _pictures(folder) if item.is_symlink())]
    return [folder]


def _die_with(parent: int) -> None:
    """End when the thread that started this process ends; at once if it has ended already."""
    if _linux.IS_LINUX:
        _linux.prctl(_linux.SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


class _Sender:
    """Writes messages; each one is progress."""

    def __init__(self, descriptor: int, confinement: Confinement) -> None:
        self._descriptor = descriptor
        self._confinement = confinement
        self._last = time.monotonic()

    def send(self, kind: int, value: object) -> None:
        for part in wire.pack(kind, value):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        self._confinement.renew()
        self._last = time.monotonic()

    def beat(self) -> None:
        """Say that this process is at work, now and then."""
        if time.monotonic() - self._last > _BEAT_EVERY:
            self.send(wire.BEAT, None)


def _rehearse(path: str, sender: _Sender) -> None:
    """Demux once, as the other process will to copy sound and subtitles, without decoding: what
    makes FFmpeg crash or hang does so here."""
    with open_media(check_readable(path), UNLIMITED) as container:
        streams = [stream for stream in container.streams if stream.type in ("audio", "subtitle")]
        try:
            for _ in demux(container, *streams) if streams else ():
                sender.beat()
        except av.FFmpegError:
            return  # a limit of what can be copied, which the other process will warn of


def _serve(request: dict[str, Any], sender: _Sender) -> None:
    path, limits = request["path"], Limits(**request["limits"])
    rate = Fraction(request["frame_rate"])
    if request["only_probe"]:
        sender.send(wire.INFO, probe(path, frame_rate=rate, limits=limits))
        return
    reader = open_reader(
        path, allow_damaged=request["allow_damaged"], frame_rate=rate, limits=limits
    )
    if not is_image_source(path):
        _rehearse(path, sender)
    if isinstance(reader, VideoReader):
        reader.count_blocks(sender.beat)  # now, as signs of life are taken before the first frame
    sender.send(wire.INFO, reader.info)
    with reader:
        for frame in reader:
            sender.send(wire.FRAME, frame)
    sender.send(wire.END, reader.warnings)  # not after an error, which is the other end


def main() -> None:
    """Answer the request in the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    request = json.loads(sys.argv[1])
    descriptor = os.dup(1)
    os.dup2(2, 1)  # nothing but messages may come out
    inputs = _inputs(request["path"])
    confinement = Confinement(request["memory"], request["seconds"], inputs, request["parent"])
    sender = _Sender(descriptor, confinement)
    if confinement.missing:  # told before the file can have any say
        sender.send(wire.NOTE, confinement.missing)
    try:
        _serve(request, sender)
    except PsssrError as error:
        sender.send(wire.ERROR, {"code": error.exit_code, "message": str(error)})
    except MemoryError:
        message = f"{request['path']}: decoding it takes more than {request['memory']} bytes"
        sender.send(wire.ERROR, {"code": 3, "message": f"{message}, which it may not."})


if __name__ == "__main__":
    main()
