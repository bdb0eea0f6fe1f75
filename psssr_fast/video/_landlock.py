"""Landlock of Linux 5.13 and later: what this process may read, and that it may write nothing.

A process under Landlock is also kept from the memory, the environment and the descriptors of
processes that are not under the same rules, and from signalling them (Linux 6.12).
"""

import contextlib
import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from psssr_fast.video import _linux

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same numbers on every processor
_TELL_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# How many kinds of access to files each version knows; versions beside these added none.
_FILE_ACCESSES = {1: 13, 2: 14, 3: 15, 5: 16}
_TCP, _OTHER_PROCESSES = 0b11, 0b11  # bind and connect; abstract sockets and signals
_SINCE_TCP, _SINCE_SCOPES = 4, 6  # versions

# Where modules and libraries lie that may still be loaded, beside those on sys.path.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def restrict(readable: Iterable[Path] | None) -> bool:
    """Let this thread and those it starts read some files and folders, and write none.

    Args:
        readable: files, and folders with all in them; ``None`` is everything. What Python itself
            may still load is added. What does not exist is left out.

    Returns:
        Whether the kernel holds to it.
    """
    version = _linux.syscall(_CREATE, None, 0, _TELL_VERSION) if _linux.IS_LINUX else 0
    if version < 1:
        return False
    ruleset = _ruleset(version)
    if ruleset < 0:
        return False
    try:
        inputs = [Path("/")] if readable is None else list(readable)
        if not all(_allow_reading(ruleset, path) for path in inputs):
            return False  # some file systems have no place for rules: it could not be read at all
        for path in _libraries():
            _allow_reading(ruleset, path)
        _linux.forbid_new_privileges()
        return _linux.syscall(_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _ruleset(version: int) -> int:
    """Return the descriptor of rules that allow nothing of what this version knows, or -1."""
    accesses = max(count for first, count in _FILE_ACCESSES.items() if first <= version)
    handled = [(1 << accesses) - 1]
    if version >= _SINCE_TCP:
        handled.append(_TCP)
    if version >= _SINCE_SCOPES:
        handled.append(_OTHER_PROCESSES)
    attributes = struct.pack(f"={len(handled)}Q", *handled)
    return _linux.syscall(_CREATE, ctypes.c_char_p(attributes), len(attributes), 0)


def _allow_reading(ruleset: int, path: Path) -> bool:
    """Add a rule; whether the kernel took it, or there is nothing there that could be read."""
    with contextlib.suppress(OSError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            is_folder = stat.S_ISDIR(os.fstat(place).st_mode)
            access = _READ_FILE | _READ_FOLDER if is_folder else _READ_FILE
            rule = struct.pack("=Qi", access, place)
            done = _linux.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
        finally:
            os.close(place)
        return done == 0
    return True


def _libraries() -> list[Path]:
    places = (*filter(None, sys.path), sys.prefix, sys.base_prefix, *_LIBRARIES)
    return [Path(place) for place in dict.fromkeys(places)]
