"""What can go wrong, and the exit code each kind of failure has on the command line.

Every message is one line that says what happened, what was got, what was needed and the remedy.
"""

import errno

# EAGAIN: no more threads or processes can be started. FFmpeg's numbers are those of the system.
_NO_MEMORY = (errno.ENOMEM, errno.EAGAIN)
# What torch, C++ and Python say in a RuntimeError when there is no memory, or no thread, left.
_NO_MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "can't start new thread",
    "failed to map segment",
    "resource temporarily unavailable",
)


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error of any library means that memory or threads have run out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno in _NO_MEMORY
    text = str(error).lower()
    # ImportError: a library could not be loaded into what memory there is.
    kind = isinstance(error, RuntimeError | ImportError)
    return kind and any(words in text for words in _NO_MEMORY_WORDS)


class PsssrError(Exception):
    """Base of every failure this package reports on purpose.

    Attributes:
        exit_code: what ``psssr`` exits with when this error ends a command.
    """

    exit_code = 1


class UsageError(PsssrError, ValueError):
    """The caller asked for something that does not exist or does not fit together."""

    exit_code = 2


class InputError(PsssrError, ValueError):
    """An input file, folder or array cannot be read as video."""

    exit_code = 3


class NotFinite(InputError):
    """The networks gave NaN or infinity for a part of the input.

    Attributes:
        frames: which, counted from the start of what was given.
    """

    def __init__(self, message: str, frames: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.frames = frames


class ModelError(PsssrError, ValueError):
    """A checkpoint is missing, damaged, unsafe, or not of the expected shape."""

    exit_code = 4


class OutOfMemory(PsssrError, MemoryError):
    """The work does not fit in memory."""

    exit_code = 5


class OutputError(PsssrError, OSError):
    """The output cannot be written."""

    exit_code = 6
