"""What all verbs share: options, one-line messages, JSON documents, errors and exit codes."""

import contextlib
import errno
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from psssr_fast.errors import InputError, OutOfMemory, OutputError, PsssrError, lacks_memory

OK, READER_GONE, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 7, 130

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# What the system answers for a name; where an output is meant, this is told before.
_NO_SUCH_NAME = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR,
    errno.EISDIR,
)  # fmt: skip


class InternalError(PsssrError):
    """A mistake of ours."""


class Console:
    """Messages to people, on stderr, one line each."""

    def line(self, text: str) -> None:
        """Print a line."""
        print(printable(text), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Say what is being done."""
        self.line(f"psssr: {text}")

    def warning(self, text: str) -> None:
        """Say what is not as it should be."""
        self.line(f"warning: {text}")

    def error(self, text: str, code: int) -> None:
        """Say what went wrong; ``code`` is the exit code that it means."""
        self.line(f"psssr: error: {text}")

    def interrupted(self) -> None:
        """Say that the user stopped it."""
        self.line("psssr: interrupted; nothing half-written is left")


@dataclass
class Shell:
    """State of one run of ``psssr``; verbs find it as ``ctx.obj``.

    Attributes:
        json: print one JSON document on stdout.
        debug: print tracebacks.
        console: where messages go.
        result_is_printed: what is printed on stdout is the result itself, and not only a word about
            the file that holds it.
    """

    json: bool = False
    debug: bool = False
    console: Console = field(default_factory=Console)
    result_is_printed: bool = True

    def report(self, error: Exception) -> PsssrError:
        """Print an error as one line (and with ``debug`` its traceback before)."""
        self.show_traceback(error)
        failure = as_psssr_error(error)
        self.console.error(str(failure), failure.exit_code)
        return failure

    def show_traceback(self, error: BaseException) -> None:
        """Print the traceback of an error with ``debug``; names and messages in it are escaped."""
        if self.debug:
            for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
                self.console.line(line)


def _store_json(ctx: typer.Context, value: bool) -> bool:
    ctx.obj.json = value
    return value


def _store_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.obj.debug = value
    return value


# Eager, so that both are known when another option is refused.
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout.",
        callback=_store_json,
        is_eager=True,
        show_default=False,
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show tracebacks of errors.",
        callback=_store_debug,
        is_eager=True,
        show_default=False,
    ),
]


def printable(text: str) -> str:
    """``text`` on one line: control characters and bytes that are not text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, limit: int = 200) -> str:
    """``text``, not endless."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def counted(number: int, noun: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_line(text: str = "") -> None:
    """Print one line of a result on stdout."""
    print(printable(text))


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values in two columns; values of ``None`` are left out."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        if value is not None:
            print_line(f"  {name:<{width}}  {value}")


def print_document(verb: str, content: Mapping[str, Any]) -> None:
    """Print the JSON document of a verb; ``schema`` says which, and its version."""
    print(json.dumps({"schema": f"psssr.{verb}/1", **content}, indent=2, allow_nan=False))


def as_psssr_error(error: Exception) -> PsssrError:
    """The error to show and its exit code: full disks, exhausted memory and names that the system
    refuses are told apart from mistakes of ours."""
    if isinstance(error, PsssrError):
        return error
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    if lacks_memory(error):
        return OutOfMemory(
            f"out of memory or threads ({text}). Use smaller windows (--window FRAMESxHEIGHTxWIDTH)"
            ", or a machine that gives more"
        )
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return OutputError(f"the disk is full ({text}). Free some space, or write elsewhere.")
    if isinstance(error, OSError) and error.errno in _NO_SUCH_NAME and error.filename is not None:
        return InputError(f"{error.filename}: cannot be read: {error.strerror}. Check the path.")
    return InternalError(f"internal error: {text}; run again with --debug and report")


class _ConsoleHandler(logging.Handler):
    """Sends log records to the console that a shell has now."""

    def __init__(self, shell: Shell) -> None:
        super().__init__()
        self._shell = shell

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError, LookupError):  # a message and its values that do not fit
            text = f"{record.msg} {record.args}"
        console = self._shell.console
        (console.warning if record.levelno >= logging.WARNING else console.note)(text)


@contextlib.contextmanager
def messages_to(shell: Shell) -> Iterator[logging.Handler]:
    """Send our log, and all libraries' warnings, to the shell's console while this lasts."""
    handler = _ConsoleHandler(shell)
    ours, root = logging.getLogger("psssr_fast"), logging.getLogger()
    level = ours.level

    def show(message: Warning | str, *where: object, **more: object) -> None:
        shell.console.warning(str(message))

    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield handler
        finally:
            root.removeHandler(handler)
            ours.setLevel(level)
