"""Turn a PyTorch pickle (``.pth``) into a safetensors file, in a process of its own.

A pickle is a program. The child process unpickles with ``weights_only=True``, which knows tensors
and plain containers only, under limits of memory, time and file size, and without the environment
of its parent.
"""

import ctypes
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from psssr_fast.errors import ModelError, OutputError, UsageError, lacks_memory
from psssr_fast.weights_files import (
    MAX_HEADER,
    MAX_TENSORS,
    is_file,
    published,
    read_weight_file,
    save_with_mode,
    shown,
)

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WRAPPERS = ("model_state", "state_dict")  # keys under which training scripts put the weights
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS", "SYSTEMROOT")
# How often the bytes of a file may be written, all tensors together: those that share memory become
# separate ones. T5 has four names for its largest matrix, which is nearly all of a small model.
_COPIES = 4
_SPARE_BYTES = 4 * 2**30  # address space beside the weights: libraries, threads
_CPU_SECONDS, _CPU_BYTES_PER_SECOND = 60, 10 * 10**6  # a slow processor takes 1 s for 100 MB
_WALL_SECONDS, _WALL_BYTES_PER_SECOND = 300, 10**6  # a slow network drive
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Converted:
    """A finished conversion: the file, and how much is in it."""

    path: Path
    tensors: int
    parameters: int


def convert_pickle(
    src: str | Path, dst: str | Path, *, trust: bool, overwrite: bool = False
) -> Converted:
    """Convert ``src`` (a state dict saved by ``torch.save``) to the safetensors file ``dst``.

    Names are kept; a state dict inside ``model_state`` or ``state_dict`` is unwrapped; tensors
    that share memory become separate ones, up to four times the size of ``src`` in all.

    Args:
        src: the pickle.
        dst: ends in ``.safetensors``; appears only once it is complete.
        trust: the caller says where ``src`` comes from is trusted. It is still read with
            ``weights_only=True``.
        overwrite: replace an existing ``dst``.

    Raises:
        UsageError: not trusted, ``dst`` exists, or has another ending.
        ModelError: ``src`` is missing, is not a pickle of tensors, asks for anything else, or for
            more than a file of its size may take: memory, time, bytes of output.
        OutputError: ``dst`` cannot be written.
        OutOfMemory, OSError: no process can be started.
    """
    src, dst = Path(src), Path(dst)
    if not trust:
        raise UsageError(
            f"{shown(src)}: a pickle can run code when it is read; if you trust where it comes"
            " from, say so with --i-trust-this-file (it is read with weights_only=True even then)"
        )
    if dst.suffix != ".safetensors":
        raise UsageError(f"{shown(dst)}: the output must end in .safetensors")
    if "\0" in str(dst):
        raise UsageError(f"{shown(dst)}: no file can have a NUL in its name; choose another one")
    exists = UsageError(f"{shown(dst)} exists; choose another name, or allow overwriting")
    if os.path.lexists(dst) and not overwrite:
        raise exists
    if not is_file(src):
        raise ModelError(f"{shown(src)}: no such file")
    try:
        with published(dst, overwrite) as temporary:  # fails before the work if nothing can be made
            _run_child(src, temporary)
            file = read_weight_file(temporary)
    except FileExistsError:
        raise exists from None
    except OSError as error:
        if lacks_memory(error):
            raise
        raise OutputError(f"{shown(dst)}: cannot be written: {error.strerror or error}") from None
    parameters = sum(torch.Size(info.shape).numel() for info in file.tensors.values())
    return Converted(dst, len(file.tensors), parameters)


def _run_child(src: Path, dst: Path) -> None:
    """Convert in another process; its exit code says which error it printed.

    Raises:
        ModelError: ``src`` was refused, or took too long.
        OSError: ``dst`` cannot be written, or no process can be started.
    """
    size = src.stat().st_size
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    packages = [str(Path(__file__).parents[1]), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1"}
    # -P: a torch.py beside the user's weights must not be imported
    arguments = (str(src.resolve()), str(dst.resolve()), str(os.getpid()))
    command = [sys.executable, "-P", "-m", "psssr_fast.convert", *arguments]
    seconds = _WALL_SECONDS + size // _WALL_BYTES_PER_SECOND
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{shown(src)}: reading it took more than {seconds} s; ended") from None
    if done.returncode == 0:
        return
    if done.returncode == OutputError.exit_code:
        raise OSError(_last_line(done.stdout))
    if done.returncode == ModelError.exit_code:
        raise ModelError(f"{shown(src)}: {_last_line(done.stdout)}")
    if done.returncode < 0 and -done.returncode == getattr(signal, "SIGXCPU", None):
        raise ModelError(
            f"{shown(src)}: reading it took more than {_cpu_seconds(size)} s of processor time"
        )
    if done.returncode < 0:
        raise ModelError(f"{shown(src)}: reading it was ended by signal {-done.returncode}")
    raise ModelError(f"{shown(src)}: cannot be read as PyTorch weights: {_last_line(done.stderr)}")


def _cpu_seconds(size: int) -> int:
    """Processor time, seconds, that a file of so many bytes may take."""
    return _CPU_SECONDS + size // _CPU_BYTES_PER_SECOND


def _last_line(text: str) -> str:
    lines = text.strip().splitlines() or ["no reason given"]
    return shown(lines[-1], 500)


def main(src: str, dst: str, parent: str = "") -> int:
    """The child: convert, or print one line and return the exit code of its error.

    Args:
        src, dst: the files.
        parent: number of the process that this one is to end with, if any.
    """
    try:
        if parent:
            _end_with(int(parent))
        _limit_resources(Path(src))
        tensors = read_pickle(Path(src))
        save_with_mode(tensors, Path(dst))
    except ModelError as error:
        print(error)
        return error.exit_code
    except (OSError, SafetensorError) as error:
        print(shown(error))
        return OutputError.exit_code
    return 0


def _limit_resources(src: Path) -> None:
    """Bound what a hostile file can make this process use, where the system can."""
    with suppress(ImportError):  # Windows has neither
        import resource

        def lower(kind: int, soft: int, hard: int) -> None:
            """Limits that the user has set already may be lower, and stay."""
            unlimited = resource.RLIM_INFINITY
            before = [limit if limit != unlimited else hard for limit in resource.getrlimit(kind)]
            resource.setrlimit(kind, (min(soft, before[0]), min(hard, before[1])))

        lower(resource.RLIMIT_CORE, 0, 0)
        size = src.stat().st_size
        seconds = _cpu_seconds(size)
        lower(resource.RLIMIT_CPU, seconds, seconds + 5)
        largest = _COPIES * size + 2 * MAX_HEADER
        lower(resource.RLIMIT_FSIZE, largest, largest)
        statistics = Path("/proc/self/statm")
        if statistics.exists():
            mapped = int(statistics.read_text().split()[0]) * resource.getpagesize()
            limit = mapped + (_COPIES + 1) * size + _SPARE_BYTES  # the file is mapped as well
            lower(resource.RLIMIT_AS, limit, limit)


def _end_with(parent: int) -> None:
    """Have the system end this process with its parent, where it can."""
    with suppress(OSError, AttributeError, TypeError):  # no such library, or no such function
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            raise SystemExit(ModelError.exit_code)


def read_pickle(src: Path) -> dict[str, Tensor]:
    """Unpickle tensors and plain containers only. For the child: a damaged file can end a process.

    Raises:
        ModelError: not a pickle, damaged, or of anything but named tensors. It names no file.
    """
    try:
        with src.open("rb") as file:
            start = file.read(4)
        zipped = start.startswith(b"PK")
        if not zipped and not start.startswith(b"\x80"):
            raise ModelError("neither a zip archive nor a pickle: not saved by torch.save")
        if zipped:
            _check_archive(src)
        content = torch.load(src, map_location="cpu", weights_only=True, mmap=zipped)
        return named_tensors(content, src.stat().st_size)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"refused: more than tensors is in it, nothing of it was executed: {_cause(error)}"
        ) from None
    except ModelError:
        raise
    except MemoryError:
        raise ModelError("refused: it asks for more memory than a file of its size may") from None
    except _DAMAGE as error:
        raise ModelError(f"cut short or damaged: {_cause(error)}") from None


# What torch's reader raises, depending on where a file is damaged.
_DAMAGE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, NotImplementedError, zipfile.BadZipFile, struct.error,
)  # fmt: skip


def _check_archive(src: Path) -> None:
    """Refuse a zip archive that holds more than its size: compressed or overlapping entries.

    Raises:
        ModelError: torch.save writes no such archive.
    """
    with zipfile.ZipFile(src) as archive:
        entries = archive.infolist()
    if len(entries) > 2 * MAX_TENSORS:
        raise ModelError(f"{len(entries)} entries; at most {2 * MAX_TENSORS} are read")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ModelError(f"refused: {shown(entry.filename)} in it is compressed")
    held, size = sum(entry.file_size for entry in entries), src.stat().st_size
    if held > size:
        raise ModelError(f"refused: its entries claim {held} bytes, but the file has {size}")


def _cause(error: Exception) -> str:
    """What was wrong, out of torch's long message; its advice to unpickle unsafely is left out."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks for {shown(asked[1])}"
    lines = [line.strip() for line in str(error).splitlines()]
    advice = re.compile("weights_only|weights only load failed", re.IGNORECASE)
    telling = [line for line in lines if line and not advice.search(line)]
    return shown((telling or [type(error).__name__])[0])


def named_tensors(content: object, size: int) -> dict[str, Tensor]:
    """The named tensors in what was unpickled, each with memory of its own.

    Args:
        content: what was unpickled.
        size: bytes of the file it was in.

    Raises:
        ModelError: something else is in it, a tensor is not dense floating point, or there is more
            in the tensors than in the file.
    """
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"holds a {type(content).__name__}; needed a table of named tensors")
    if len(content) > MAX_TENSORS:
        raise ModelError(f"{len(content)} tensors; at most {MAX_TENSORS} are converted")
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    left = _COPIES * size
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(f"{shown(name)} is a {type(value).__name__}; needed a tensor")
        if value.dtype not in _DTYPES or value.layout != torch.strided:
            raise ModelError(f"{shown(name)} is {value.dtype}, {value.layout}; needed dense floats")
        left -= _checked_bytes(name, value)
        if left < 0:
            raise ModelError(
                f"refused: its tensors share memory, and written separately they take more than "
                f"{_COPIES} times the {size} bytes of the file"
            )
        tensor = value.detach().resolve_neg().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors


def _checked_bytes(name: str, tensor: Tensor) -> int:
    """The bytes that a tensor takes when it is written.

    Raises:
        ModelError: it is in no memory, or larger than the memory it is made of, or outside of it.
    """
    if tensor.device.type != "cpu" or tensor.is_nested:
        raise ModelError(f"{shown(name)} is on {tensor.device}; needed are plain tensors")
    needed, held = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if needed > held:
        raise ModelError(
            f"refused: {shown(name)} has {needed} bytes, but only {held} are stored of it"
        )
    steps = [(d - 1) * stride for d, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    first = tensor.storage_offset() + sum(step for step in steps if step < 0)
    last = tensor.storage_offset() + sum(step for step in steps if step > 0)
    if needed and (first < 0 or (last + 1) * tensor.itemsize > held):
        raise ModelError(f"refused: {shown(name)} reaches out of what is stored of it")
    return needed


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
