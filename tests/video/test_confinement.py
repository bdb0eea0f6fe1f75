"""What code in the confined process can still do: every system call, other ABIs, /proc."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import confined_attacks
import pytest
from cli_fixtures import HANGS_AFTER

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="the filter of system calls is for Linux on x86-64",
)

# What gets through when every argument is -1, by number. A new one here is a hole.
THROUGH = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "lseek": 8,
    "mmap (of no file)": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "pread64": 17, "readv": 19, "writev": 20, "access": 21,
    "sched_yield": 24, "mremap": 25,
    "madvise": 28, "nanosleep": 35, "getpid": 39, "getcwd": 79, "readlink": 89,
    "gettimeofday": 96, "getrusage": 98, "sysinfo": 99, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186,
    "getdents64": 217, "restart_syscall": 219, "fadvise64": 221, "newfstatat": 262,
    "readlinkat": 267, "faccessat": 269, "set_robust_list": 273, "getrandom": 318, "statx": 332,
    "rseq": 334, "faccessat2": 439,
}  # fmt: skip


@pytest.fixture
def victim(tmp_path) -> Path:
    path = tmp_path / "victim"
    path.write_text("HELLO" * 100)
    return path


def attack(what: str, victim: Path, *more: object) -> list[str]:
    """Lines that the confined process prints; it must get to its end."""
    sibling = subprocess.Popen(["sleep", "60"])
    arguments = [what, victim, os.getpid(), sibling.pid, *more]
    try:
        command = [sys.executable, confined_attacks.__file__, *map(str, arguments)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=HANGS_AFTER,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    finally:
        sibling.kill()
        sibling.wait()
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def test_every_system_call_is_refused_but_those_of_the_list(victim):
    through = set(map(int, attack("every", victim)))
    assert through - set(THROUGH.values()) == set(), "holes"
    assert set(THROUGH.values()) - through == set(), "refused, though decoding needs them"


def test_other_abis_are_refused(victim):
    assert attack("x32", victim) == []
    try:
        assert attack("abi", victim) == []
    except AssertionError as error:  # a kernel without 32-bit calls ends whoever tries
        if f"returncode={-signal.SIGSEGV}" not in str(error):
            raise


def test_allowed_calls_are_refused_with_other_arguments(victim):
    before = victim.stat()
    assert attack("checked", victim) == []
    assert victim.stat() == before
    assert stat.S_IMODE(before.st_mode) == stat.S_IMODE(victim.stat().st_mode)


def test_what_decoding_needs_goes_through(victim):
    assert attack("needed", victim) == []


def test_other_processes_cannot_be_read(victim):
    assert attack("processes", victim) == []


def test_no_capability_is_left_and_no_program_can_bring_one(victim):
    values = dict(line.split(":", 1) for line in attack("state", victim))
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(values[kind], 16) == 0, kind
    assert values["NoNewPrivs"].strip() == "1" and values["Seccomp"].strip() == "2"
    if os.getuid() == 0:  # others may not lower it, and have nothing in it to use
        assert int(values["CapBnd"], 16) == 0


def test_only_the_input_and_libraries_can_be_read(victim, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(victim)
    other = tmp_path / "other"
    other.write_text("secret")
    found = attack("files", victim, link, other, sys.executable)
    if str(Path(sys.executable).resolve()).startswith(os.path.realpath(sys.base_prefix)):
        assert sys.executable in found
    assert set(found) - {sys.executable} == {str(victim), str(link)}
