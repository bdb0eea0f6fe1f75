"""What was measured once on a machine, kept in a file so that nobody has to measure it again.

``psssr warmup`` writes the file, loading a model only reads it. It holds answers to questions, all
of them text: which way is the fastest. A wrong answer costs time and never changes a result beyond
its rounding; so a file that is damaged, or not to be read, is as good as none.
"""

import json
import logging
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from psssr_fast import __version__
from psssr_fast.files import make_folders, whole_file

VARIABLE = "PSSSR_CHOICES"
SCHEMA = "psssr.choices/1"
logger = logging.getLogger(__name__)


def choices_path() -> Path | None:
    """The file: what ``PSSSR_CHOICES`` names, or ``psssr_fast/choices.json`` in the user's cache;
    ``None`` if the variable is ``off``."""
    named = os.environ.get(VARIABLE)
    if named == "off":
        return None
    if named:
        return Path(named)
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "psssr_fast" / "choices.json"


def device_name(device: torch.device) -> str:
    """What a device is, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine(device: torch.device) -> str:
    """Everything that an answer may depend on besides the question."""
    parts = [device_name(device)]
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        parts += [f"sm_{major}{minor}", f"driver {_driver()}", f"cudnn {_cudnn()}"]
    else:
        parts.append(f"{torch.get_num_threads()} threads")
    versions = f"torch {torch.__version__}", f"triton {_triton()}", f"psssr_fast {__version__}"
    return ", ".join([*parts, *versions])


def recall(device: torch.device) -> dict[str, str]:
    """The answers known for this machine, by their questions."""
    path = choices_path()
    answers = None if path is None else _read(path).get(machine(device))
    return dict(answers or {})


def remember(device: torch.device, answers: Mapping[str, str]) -> Path | None:
    """Add answers to the file, or replace them; others stay.

    Returns:
        The file, or ``None`` if nothing is to be kept.

    Raises:
        OSError: it cannot be written.
    """
    path = choices_path()
    if path is None:
        return None
    machines = _read(path)
    machines[machine(device)] = {**machines.get(machine(device), {}), **answers}
    text = json.dumps({"schema": SCHEMA, "machines": machines}, indent=1, sort_keys=True)
    make_folders(path.parent)
    with whole_file(path, replace=True) as file:  # a reader sees the old file or the new one
        file.write(f"{text}\n".encode())
    return path


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Answers by machine; none, and a line in the log, if the file is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA!r}")
        return {
            str(name): {str(question): str(answer) for question, answer in answers.items()}
            for name, answers in content["machines"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        logger.warning("%s: ignored, run psssr warmup to replace it: %s", path, reason)
        return {}


def _driver() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _cudnn() -> int | None:
    found: int | None = torch.backends.cudnn.version()
    return found


@cache
def _triton() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"
