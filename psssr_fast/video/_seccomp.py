"""The system calls that decoding a file needs, and a filter that refuses all others.

The filter is for Linux on x86-64. A call that is not listed fails with EPERM, or, if it is newer
than Linux 5.0, with ENOSYS: the C library then does without it, as on an older kernel.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

from psssr_fast.video import _linux

# Calls that need no look at their arguments: they read, wait, or concern this process alone.
_ALLOWED = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "lseek": 8,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20, "access": 21, "sched_yield": 24,
    "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60, "getcwd": 79,
    "readlink": 89, "gettimeofday": 96, "getrusage": 98, "sysinfo": 99, "getuid": 102,
    "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131,
    "gettid": 186, "futex": 202, "getdents64": 217, "restart_syscall": 219, "fadvise64": 221,
    "exit_group": 231, "newfstatat": 262, "readlinkat": 267, "faccessat": 269,
    "set_robust_list": 273, "getrandom": 318, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_OPEN, _OPENAT, _MMAP, _CLONE, _FCNTL, _PRCTL = 2, 257, 9, 56, 72, 157
_SCHED_GETAFFINITY, _TGKILL, _PRLIMIT = 204, 234, 302
_CLOCKS = (228, 229, 230)  # clock_gettime, clock_getres, clock_nanosleep
_FIRST_WITH_FALLBACK = 424  # numbers from here on came with Linux 5.1 and later
_GETPGRP, _SECCOMP = 111, 317

# Of open: not O_PATH, and nothing that writes. O_LARGEFILE is 0 to Python and 0x8000 to the kernel.
_READING = os.O_RDONLY | 0x8000 | sum(
    getattr(os, name, 0)
    for name in ("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK")
)  # fmt: skip
_CLONE_THREAD = 0x10000
# What pthread_create asks for: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS,
# PARENT_SETTID, CHILD_CLEARTID, and of musl DETACHED.
_THREAD_FLAGS = 0x7D0F00
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_GET_AND_SET_CLOSE_ON_EXEC = (1, 2, 3)  # F_GETFD, F_SETFD, F_GETFL
_SET_NAME = 15  # PR_SET_NAME, of the calling thread
_RLIMIT_CPU = 0
_OWN_CLOCKS = 16  # numbers above are clocks of other processes and of devices

_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
_RETURN_ALLOW, _RETURN_ERROR = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_SET_FILTER, _ALL_THREADS = 1, 1  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC

_Steps = list[bytes]


def install_filter() -> bool:
    """Have the kernel refuse what decoding never needs, in all threads; whether it does so."""
    if not _linux.IS_LINUX or platform.machine() != "x86_64" or sys.maxsize < 2**32:
        return False
    program = b"".join(_program(os.getpid()))
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _linux.forbid_new_privileges()
    done = _linux.syscall(_SECCOMP, _SET_FILTER, _ALL_THREADS, ctypes.c_char_p(header))
    return done == 0 and _linux.syscall(_GETPGRP) == -1  # which cannot fail otherwise


def _program(pid: int) -> _Steps:
    """Return the filter, one instruction an item; ``pid`` is the process that it is for."""
    # struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
    steps = [_load(4), _if_equal(_X86_64, 1, 0), _REFUSE]
    steps += [_load(0)]  # bit 30 is set for the ABI of 32-bit pointers: those are on no list
    for number in _ALLOWED.values():
        steps += _rule(number, [_ALLOW])
    for number, body in _checked_calls(pid).items():
        steps += _rule(number, body)
    return [*steps, _if_at_least(_FIRST_WITH_FALLBACK, 0, 1), _UNKNOWN, _REFUSE]


def _checked_calls(pid: int) -> dict[int, _Steps]:
    """Return what is done about calls that are allowed with some arguments only."""
    thread = [_if_any_bit(_CLONE_THREAD, 0, 1), _ALLOW, _REFUSE]
    private = [_argument(3), _if_any_bit(_MAP_SHARED, 0, 1), _if_any_bit(_MAP_ANONYMOUS, 0, 1)]
    own_limit = [_argument(0), _if_equal(0, 1, 0), _REFUSE, _argument(1)]
    own_limit += [_if_equal(_RLIMIT_CPU, 0, 1), _ALLOW]
    # Other limits may be asked for, not set: the pointer to new ones must be null, all 64 bits.
    own_limit += [_argument(2), _if_equal(0, 1, 0), _REFUSE]
    own_limit += [_argument_high(2), _if_equal(0, 1, 0), _REFUSE, _ALLOW]
    clock = [_argument(0), _if_at_least(_OWN_CLOCKS, 0, 1), _REFUSE, _ALLOW]
    return {
        _OPEN: _only_bits(1, _READING),
        _OPENAT: _only_bits(2, _READING),
        _MMAP: [*private, _ALLOW, _REFUSE],
        # Flags of clone3 cannot be seen from here; where it is unknown, clone is used.
        _CLONE: [_argument(0), _if_any_bit(~_THREAD_FLAGS & 0xFFFFFFFF, 0, 1), _REFUSE, *thread],
        _FCNTL: _one_of(1, _GET_AND_SET_CLOSE_ON_EXEC),
        _PRCTL: _one_of(0, (_SET_NAME,)),
        _SCHED_GETAFFINITY: _one_of(0, (0, pid)),
        _TGKILL: _one_of(0, (pid,)),  # abort() signals its own thread
        _PRLIMIT: own_limit,
        **dict.fromkeys(_CLOCKS, clock),
    }


def _rule(number: int, body: _Steps) -> _Steps:
    """Return steps that go through ``body``, which must end with a decision, for one call."""
    return [_if_equal(number, 0, len(body)), *body]


def _only_bits(argument: int, bits: int) -> _Steps:
    return [_argument(argument), _if_any_bit(~bits & 0xFFFFFFFF, 0, 1), _REFUSE, _ALLOW]


def _one_of(argument: int, values: tuple[int, ...]) -> _Steps:
    steps = [_argument(argument)]
    for value in values:
        steps += [_if_equal(value, 0, 1), _ALLOW]
    return [*steps, _REFUSE]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return _step(0x20, offset)


def _argument(index: int) -> bytes:
    """Load the low 32 bits of an argument: all that the kernel looks at, of an ``int``."""
    return _load(16 + 8 * index)


def _argument_high(index: int) -> bytes:
    return _load(20 + 8 * index)


def _if_equal(value: int, if_true: int, if_false: int) -> bytes:
    return _step(0x15, value, if_true, if_false)


def _if_at_least(value: int, if_true: int, if_false: int) -> bytes:
    return _step(0x35, value, if_true, if_false)


def _if_any_bit(bits: int, if_true: int, if_false: int) -> bytes:
    return _step(0x45, bits, if_true, if_false)


_ALLOW = _step(0x06, _RETURN_ALLOW)
_REFUSE = _step(0x06, _RETURN_ERROR | errno.EPERM)
_UNKNOWN = _step(0x06, _RETURN_ERROR | errno.ENOSYS)
