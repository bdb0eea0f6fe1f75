"""Turn a PyTorch pickle (``.pth``) into a safetensors file, in a process of its own.

A pickle is a program. The child process unpickles with ``weights_only=True``, which knows tensors
and plain containers only, under limits of memory, time and file size, and without the environment
of its parent.
"""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from psssr_fast.errors import ModelError, OutputError, UsageError
from psssr_fast.weights_files import read_weight_file, save_with_mode, shown

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WRAPPERS = ("model_state", "state_dict")  # keys under which training scripts put the weights
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS", "SYSTEMROOT")
_SPARE_BYTES = 4 * 2**30  # address space beside the weights: libraries, threads
_CPU_SECONDS = 3600


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
    that share memory become separate ones.

    Args:
        src: the pickle.
        dst: ends in ``.safetensors``; appears only once it is complete.
        trust: the caller says where ``src`` comes from is trusted. It is still read with
            ``weights_only=True``.
        overwrite: replace an existing ``dst``.

    Raises:
        UsageError: not trusted, ``dst`` exists, or has another ending.
        ModelError: ``src`` is missing, is not a pickle of tensors, or asks for anything else.
        OutputError: ``dst`` cannot be written.
    """
    src, dst = Path(src), Path(dst)
    if not trust:
        raise UsageError(
            f"{shown(src)}: a pickle can run code when it is read; if you trust where it comes"
            " from, say so with --i-trust-this-file (it is read with weights_only=True even then)"
        )
    if dst.suffix != ".safetensors":
        raise UsageError(f"{shown(dst)}: the output must end in .safetensors")
    if dst.exists() and not overwrite:
        raise UsageError(f"{shown(dst)} exists; choose another name, or allow overwriting")
    if not src.is_file():
        raise ModelError(f"{shown(src)}: no such file")
    temporary = dst.with_name(f".{dst.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()  # fails here, before the work, where nothing can be written
        _run_child(src, temporary)
        file = read_weight_file(temporary)
        temporary.replace(dst)
    except OSError as error:
        raise OutputError(f"{shown(dst)}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    parameters = sum(torch.Size(info.shape).numel() for info in file.tensors.values())
    return Converted(dst, len(file.tensors), parameters)


def _run_child(src: Path, dst: Path) -> None:
    """Convert in another process; its exit code says which error it printed.

    Raises:
        ModelError: ``src`` was refused.
        OSError: ``dst`` cannot be written.
    """
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    packages = [str(Path(__file__).parents[1]), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1"}
    # -P: a torch.py beside the user's weights must not be imported
    command = [
        sys.executable,
        "-P",
        "-m",
        "psssr_fast.convert",
        str(src.resolve()),
        str(dst.resolve()),
    ]
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return
    if done.returncode == OutputError.exit_code:
        raise OSError(_last_line(done.stdout))
    if done.returncode == ModelError.exit_code:
        raise ModelError(f"{shown(src)}: {_last_line(done.stdout)}")
    if done.returncode < 0:
        raise ModelError(f"{shown(src)}: reading it was ended by signal {-done.returncode}")
    raise ModelError(f"{shown(src)}: cannot be read as PyTorch weights: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines() or ["no reason given"]
    return shown(lines[-1], 500)


def main(src: str, dst: str) -> int:
    """The child: convert, or print one line and return the exit code of its error."""
    try:
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

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
        statistics = Path("/proc/self/statm")
        if statistics.exists():
            mapped = int(statistics.read_text().split()[0]) * resource.getpagesize()
            limit = mapped + 4 * src.stat().st_size + _SPARE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


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
        content = torch.load(src, map_location="cpu", weights_only=True, mmap=zipped)
        return named_tensors(content)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"refused: more than tensors is in it, nothing of it was executed: {_cause(error)}"
        ) from None
    except ModelError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"cut short or damaged: {_cause(error)}") from None


def _cause(error: Exception) -> str:
    """What was wrong, out of torch's long message; its advice to unpickle unsafely is left out."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks for {shown(asked[1])}"
    lines = [line.strip() for line in str(error).splitlines()]
    advice = re.compile("weights_only|weights only load failed", re.IGNORECASE)
    telling = [line for line in lines if line and not advice.search(line)]
    return shown((telling or [type(error).__name__])[0])


def named_tensors(content: object) -> dict[str, Tensor]:
    """The named tensors in what was unpickled, each with memory of its own.

    Raises:
        ModelError: something else is in it, or a tensor is not dense floating point.
    """
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"holds a {type(content).__name__}; needed a table of named tensors")
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(f"{shown(name)} is a {type(value).__name__}; needed a tensor")
        if value.dtype not in _DTYPES or value.layout != torch.strided:
            raise ModelError(f"{shown(name)} is {value.dtype}, {value.layout}; needed dense floats")
        tensor = value.detach().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
