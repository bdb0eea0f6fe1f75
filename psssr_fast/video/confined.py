"""The process that decodes untrusted files: what it may do, and what it does.

It runs as ``python -m psssr_fast.video.confined REQUEST`` and writes messages of
:mod:`psssr_fast.video.wire` on its stdout. Before it looks at the file it gives up memory,
processor time, writing files, the network and, on Linux for x86-64, starting programs and changing
files.
"""

import contextlib
import ctypes
import errno
import json
import math
import os
import platform
import struct
import sys
import time
from fractions import Fraction
from typing import Any

import av

from psssr_fast.errors import PsssrError
from psssr_fast.video import wire
from psssr_fast.video.container import check_readable, demux, open_media
from psssr_fast.video.images import is_image_source
from psssr_fast.video.limits import UNLIMITED, Limits
from psssr_fast.video.reader import open_reader, probe

_OPEN_FILES = 64
_NEW_NET, _NEW_USER = 0x40000000, 0x10000000  # flags of unshare(2)
_BEAT_EVERY = 1.0  # seconds

# System calls of Linux on x86-64 that decoding a file never needs.
_DENIED = {
    "socket": 41, "connect": 42, "bind": 49, "listen": 50, "socketpair": 53,
    "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "truncate": 76, "ftruncate": 77,
    "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "fchmod": 91, "chown": 92, "ptrace": 101, "mknod": 133, "mount": 165,
    "mkdirat": 258, "mknodat": 259, "fchownat": 260, "unlinkat": 263, "renameat": 264,
    "linkat": 265, "symlinkat": 266, "fchmodat": 268, "process_vm_writev": 311, "renameat2": 316,
    "execveat": 322, "io_uring_setup": 425, "openat2": 437,
}  # fmt: skip
_OPEN_FLAGS = {2: 1, 257: 2}  # open and openat: which argument holds the flags
_CLONE, _CLONE3, _CLONE_THREAD = 56, 435, 0x10000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_REFUSE = _ERROR | errno.EPERM
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # of BPF


class Confinement:
    """Limits of this process, the one on processor time renewed as long as there is progress.

    Args:
        memory: bytes beside those in use now.
        seconds: of processor time without progress.
    """

    def __init__(self, memory: int, seconds: float) -> None:
        self._seconds = math.ceil(seconds)
        _leave_network()
        _deny_system_calls()
        with contextlib.suppress(ImportError):
            import resource

            for kind, limit in (("CORE", 0), ("FSIZE", 0), ("NOFILE", _OPEN_FILES)):
                number = getattr(resource, f"RLIMIT_{kind}")
                resource.setrlimit(number, (limit, limit))
            if os.path.exists("/proc/self/statm"):
                with open("/proc/self/statm") as file:
                    mapped = int(file.read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
        self.renew()

    def renew(self) -> None:
        """There is progress: the processor time that is left counts from now."""
        with contextlib.suppress(ImportError):
            import resource

            used = math.ceil(time.process_time())
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (used + self._seconds, hard))


def _leave_network() -> None:
    """Move to a network without interfaces, where the system lets us."""
    if sys.platform != "linux":
        return
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(_NEW_NET) != 0:  # only root may, or the root of a user namespace of its own
        unshare(_NEW_USER | _NEW_NET)


def _deny_system_calls() -> bool:
    """Have the kernel refuse what decoding never needs; whether it does so."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32:
        return False
    program = _filter_program()
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which the next needs to be root
    return bool(prctl(22, 2, ctypes.c_char_p(header)) == 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _filter_program() -> bytes:
    """A program for seccomp(2): refuse ``_DENIED``, other ABIs, and opening a file to write."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    # struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
    steps = [step(_LOAD, 4), step(_IF_EQUAL, _X86_64, 1, 0), step(_RETURN, _REFUSE), step(_LOAD, 0)]
    steps += [step(_IF_AT_LEAST, 0x40000000, 0, 1), step(_RETURN, _REFUSE)]  # the x32 ABI
    for number in _DENIED.values():
        steps += [step(_IF_EQUAL, number, 0, 1), step(_RETURN, _REFUSE)]
    # Threads only. The flags of clone3 cannot be seen from here; without it, clone is used.
    steps += [step(_IF_EQUAL, _CLONE3, 0, 1), step(_RETURN, _ERROR | errno.ENOSYS)]
    steps += [step(_IF_EQUAL, _CLONE, 0, 4), step(_LOAD, 16)]
    steps += [step(_IF_ANY_BIT, _CLONE_THREAD, 1, 0), step(_RETURN, _REFUSE), step(_RETURN, _ALLOW)]
    for number, argument in _OPEN_FLAGS.items():
        steps += [step(_IF_EQUAL, number, 0, 4), step(_LOAD, 16 + 8 * argument)]
        steps += [step(_IF_ANY_BIT, _WRITING, 0, 1), step(_RETURN, _REFUSE), step(_RETURN, _ALLOW)]
    return b"".join([*steps, step(_RETURN, _ALLOW)])


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
    sender.send(wire.INFO, reader.info)
    with reader:
        for frame in reader:
            sender.send(wire.FRAME, frame)
    sender.send(wire.END, reader.warnings)  # not after an error, which is the other end


def main() -> None:
    """Answer the request in the first argument."""
    request = json.loads(sys.argv[1])
    descriptor = os.dup(1)
    os.dup2(2, 1)  # nothing but messages may come out
    sender = _Sender(descriptor, Confinement(request["memory"], request["seconds"]))
    try:
        _serve(request, sender)
    except PsssrError as error:
        sender.send(wire.ERROR, {"code": error.exit_code, "message": str(error)})
    except MemoryError:
        message = f"{request['path']}: decoding it takes more than {request['memory']} bytes"
        sender.send(wire.ERROR, {"code": 3, "message": f"{message}, which it may not."})


if __name__ == "__main__":
    main()
