"""Calls of Linux that Python has no function for, as the confined process and its parent need."""

import ctypes
import functools
import struct
import sys
from typing import Any

SET_PARENT_DEATH_SIGNAL, GET_DUMPABLE, SET_DUMPABLE = 1, 3, 4  # of prctl(2)
_DROP_BOUND, _NO_NEW_PRIVILEGES, _AMBIENT, _CLEAR_AMBIENT = 24, 38, 47, 4
_CAPABILITIES = 64  # numbers that are tried; Linux has 41 of them
_CAPABILITY_VERSION = 0x20080522  # the third, with 64 bits
_CAPABILITY_DATA = struct.Struct("6I")  # effective, permitted, inheritable; then the high halves
READ_ANY_FILE = 1 << 2  # CAP_DAC_READ_SEARCH

IS_LINUX = sys.platform == "linux"


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2); -1 if it failed."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    return int(_libc().prctl(option, *map(ctypes.c_ulong, padded)))


def syscall(number: int, *arguments: Any) -> int:
    """Call the kernel by number; -1 if it failed. Integers are passed with 64 bits."""
    wide = (ctypes.c_long(item) if isinstance(item, int) else item for item in arguments)
    call = _libc().syscall
    call.restype = ctypes.c_long
    return int(call(ctypes.c_long(number), *wide))


def unshare(flags: int) -> bool:
    """Leave namespaces that are shared with other processes; whether the kernel did so."""
    return bool(_libc().unshare(ctypes.c_int(flags)) == 0)


def forbid_new_privileges() -> bool:
    """Have the kernel never give this process more rights, as running a program might."""
    return prctl(_NO_NEW_PRIVILEGES, 1) == 0


def set_capabilities(effective: int, permitted: int) -> bool:
    """Set the capabilities of this thread, as bits; it inherits none. Whether the kernel did so."""
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    low, high = 0xFFFFFFFF, 32
    words = (effective & low, permitted & low, 0, effective >> high, permitted >> high, 0)
    return bool(_libc().capset(header, _CAPABILITY_DATA.pack(*words)) == 0)


def drop_bounds() -> None:
    """Give up that a program could bring capabilities back, as far as this process may."""
    prctl(_AMBIENT, _CLEAR_AMBIENT)
    for number in range(_CAPABILITIES):
        prctl(_DROP_BOUND, number)


def permitted_capabilities() -> int:
    """Return the capabilities that this thread may use, as bits."""
    data = ctypes.create_string_buffer(_CAPABILITY_DATA.size)
    if _libc().capget(struct.pack("Ii", _CAPABILITY_VERSION, 0), data) != 0:
        return 0
    words = _CAPABILITY_DATA.unpack(data.raw)
    return int(words[1]) | int(words[4]) << 32


def thread_count(pid: int | None = None) -> int:
    """Return how many threads a process has, this one if none is named; 1 where nothing tells."""
    try:
        with open(f"/proc/{'self' if pid is None else pid}/stat", "rb") as file:
            # The name, in brackets, may hold anything; 17 fields after it comes the number.
            return int(file.read().rpartition(b")")[2].split()[17])
    except (OSError, ValueError, IndexError):
        return 1
