"""Tries what code in the confined process could try, and prints what got through, a line each.

``python confined_attacks.py WHAT VICTIM PARENT SIBLING``: it is ended by nothing but the filter.
"""

import contextlib
import ctypes
import os
import struct
import sys
from pathlib import Path

from psssr_fast.video.confined import Confinement

CALL = ctypes.CDLL(None, use_errno=True).syscall
CALL.restype = ctypes.c_long
# These end the process or jump, whatever their arguments are.
FINAL = {"exit": 60, "exit_group": 231, "rt_sigreturn": 15, "uretprobe": 335, "uprobe": 336}
EPERM, ENOSYS = 1, 38
X32 = 0x40000000


def call(number: int, *arguments: object) -> int:
    """Call the kernel; minus the number of the error if there is one."""
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    ctypes.set_errno(0)
    answer = CALL(ctypes.c_long(number), *wide)
    return -ctypes.get_errno() if answer == -1 else answer


def every_number(first: int = 0) -> list[str]:
    """The numbers that the filter lets through, with arguments that make every call fail."""
    numbers = [first + n for n in range(471) if n not in FINAL.values()]
    return [str(n - first) for n in numbers if call(n, *[-1] * 6) not in (-EPERM, -ENOSYS)]


def checked_calls(victim: str, parent: int) -> list[str]:
    """Calls that depend on their arguments, with arguments that must be refused."""
    name, here, me = victim.encode(), -100, os.getpid()
    own = os.open(victim, os.O_RDONLY)
    limits, room = struct.pack("QQ", 1, 1), ctypes.create_string_buffer(256)
    attempts = {f"open to {flags:#o}": (2, name, flags, 0o600) for flags in writing_flags()}
    attempts |= {f"openat {flags:#o}": (257, here, name, flags, 0o600) for flags in writing_flags()}
    attempts |= {f"mmap shared {f}": (9, 0, 4096, 1, f, own, 0) for f in (1, 3, 0x8001)}
    attempts |= {f"fcntl {cmd}": (72, 1, cmd, parent) for cmd in (0, 4, 8, 10, 1024, 1026, 1030)}
    attempts |= {f"fcntl {cmd}": (72, 1, cmd, 4096) for cmd in (1031, 1033, 6, 15)}
    attempts |= {f"ioctl {request:#x}": (16, 1, request, room) for request in (0x5401, 0x5412)}
    attempts |= {f"prctl {option}": (157, option, 0, 0, 0, 0) for option in (1, 2, 3, 4, 23, 35)}
    attempts |= {
        "clone to fork": (56, 17, 0, 0, 0, 0), "clone sharing memory": (56, 0x111, 0, 0, 0, 0),
        "clone of a namespace": (56, 0x10010F00, 0, 0, 0, 0), "clone3": (435, room, 88),
        "thread in a namespace": (56, 0x20010F00, 0, 0, 0, 0),
        "tgkill": (234, parent, parent, 0), "tgkill all": (234, -1, parent, 0),
        "limits of the parent": (302, parent, 0, 0, room), "own memory": (302, 0, 9, limits, 0),
        "own memory by number": (302, me, 9, limits, 0), "files": (302, 0, 7, limits, 0),
        "processors of the parent": (204, parent, 128, room),
        "clock of the parent": (228, (~parent << 3) | 2, room),
        "sleep by the parent's clock": (230, (~parent << 3) | 2, 0, bytes(16), 0),
        "resolution of its clock": (229, (~parent << 3) | 2, room),
        "chmod": (452, here, name, 0o4777, 0), "setxattr": (188, name, b"user.a", b"1", 1, 0),
        "setxattrat": (463, here, name, 0, b"user.a", room, 16),
        "utimensat": (280, here, name, 0, 0), "chown": (94, name, os.getuid(), os.getgid()),
        "memory": (310, parent, room, 1, room, 1, 0),
        "pidfd_open": (434, parent, 0), "kcmp": (312, parent, me, 0, 0, 0),
        "file of a process": (304, here, room, 0), "memfd_create": (319, b"a", 0),
        "socket": (41, 1, 1, 0), "signal 0": (62, parent, 0), "priority": (141, 0, parent, 5),
    }  # fmt: skip
    # Another error is not enough: it comes from a layer behind the filter, or from the arguments.
    refused = (-EPERM, -ENOSYS)
    return [f"{what}: {n}" for what, it in attempts.items() if (n := call(*it)) not in refused]


def writing_flags() -> list[int]:
    """Flags of open that do more than read."""
    flags = [os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_PATH, 3]
    return [*flags, os.O_TMPFILE | os.O_RDWR, os.O_DIRECT, os.O_ASYNC, os.O_NOATIME]


def needed_calls(victim: str) -> list[str]:
    """What decoding needs and must go through; what does not is printed."""
    room, limits = ctypes.create_string_buffer(256), struct.pack("Qq", 2000, -1)
    attempts = {
        "read": (257, -100, victim.encode(), os.O_RDONLY | os.O_CLOEXEC, 0),
        "private memory": (9, 0, 4096, 3, 0x22, -1, 0),
        "shared, of no file": (9, 0, 4096, 3, 0x21, -1, 0),
        "wake": (202, room, 1, 1, 0, 0, 0), "own clock": (228, 1, room),
        "name": (157, 15, b"x", 0, 0, 0),
        "own processors": (204, 0, 128, room), "processor time": (302, 0, 0, limits, room),
        "limit to look at": (302, 0, 3, 0, room), "no signal": (234, os.getpid(), os.getpid(), 0),
        "random": (318, room, 16, 0), "stat": (262, -100, victim.encode(), room, 0),
    }  # fmt: skip
    return [what for what, attempt in attempts.items() if call(*attempt) < 0]


def processes(*numbers: int) -> list[str]:
    """What can be read of other processes, but for the numbers of their descriptors."""
    files = ("mem", "environ", "maps", "smaps", "auxv", "pagemap", "syscall", "stack", "io")
    done = []
    for base in (f"/proc/{number}" for number in numbers):
        for path in [*(f"{base}/{file}" for file in files), *Path(base).glob("task/*/mem")]:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.read(0 if str(path).endswith("mem") else 16)
                done.append(str(path))
        for link in ("exe", "cwd", "root", "fd/0", "fd/1"):
            with contextlib.suppress(OSError):
                done.append(os.readlink(f"{base}/{link}"))
        with contextlib.suppress(OSError):
            done += os.listdir(f"{base}/root/")
    return done


def files(victim: str, *others: str) -> list[str]:
    """Which files can be read, and which folders be listed."""
    found = []
    system = ("/etc/passwd", "/proc/1/cmdline", "/proc/self/environ", "/dev/null", "/dev/zero")
    for path in (victim, *system, *others):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.read(1)
            found.append(path)
    numbers = ("/proc/self/fd", f"/proc/{os.getppid()}/fd")
    for path in (str(Path(victim).parent), "/", "/proc", "/tmp", "/root", *numbers):
        with contextlib.suppress(OSError):
            os.listdir(path)
            found.append(path)
    return found


def other_abi() -> list[str]:
    """Whether the 32-bit entry of the kernel still answers: getpid by ``int 0x80``."""
    import mmap

    code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    return [] if answer == -EPERM else [f"getpid of 32 bits: {answer}"]


def main() -> None:
    what, victim, parent, sibling = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    readable = [Path(victim)] if what == "files" else None
    Confinement(2**30, 20, readable)
    print("\n".join({
        "every": every_number, "x32": lambda: every_number(X32),
        "checked": lambda: checked_calls(victim, parent),
        "needed": lambda: needed_calls(victim), "abi": other_abi,
        "processes": lambda: processes(parent, sibling, 1),
        "files": lambda: files(victim, *sys.argv[5:]),
        "state": lambda: [line.strip() for line in open("/proc/self/status")],  # noqa: SIM115
    }[what]()))  # fmt: skip


if __name__ == "__main__":
    main()
