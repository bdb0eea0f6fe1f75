"""Compile the kernels that a launcher launches, for a GPU that is not there, and read the result.

The launchers run unchanged, on tensors of the meta device. Under :func:`compiling_for` Triton
compiles every kernel they launch for the named architecture, with the very signature and options
of the launch, and hands the cubin to us where it would hand it to the GPU.

``python tests/compile_only.py OP...`` compiles the cases of ``tests/cubins/OP.py`` for every
architecture and prints one JSON: it needs a process in which Triton's interpreter is off.
"""

import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "psssr-cubins"))
BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"
ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Cubin:
    """What the compiler made of one launch.

    Attributes:
        kernel: name of the Triton function.
        grid: programs of the launch.
        threads: of a program.
        registers: of a thread.
        shared: bytes of shared memory, static and dynamic.
        local: bytes of stack and spilled registers of a thread.
        opcodes: how often each SASS instruction occurs, modifiers included: ``LDG.E.128``.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    registers: int
    shared: int
    local: int
    opcodes: dict[str, int]

    def count(self, pattern: str) -> int:
        """Instructions whose name matches a regular expression from its beginning."""
        matches = re.compile(pattern).match
        return sum(count for name, count in self.opcodes.items() if matches(name))


@dataclass(frozen=True)
class Case:
    """One call of a launcher at a shape that users run, and what is claimed of its kernels.

    Attributes:
        name: says which model and size it is from.
        launch: makes the call, on tensors of the meta device.
        launches: how many kernels that takes.
        wide: 128-bit loads and stores of global memory (TMA counts) occur in every kernel.
        tensor_cores: HMMA on sm_80 and HGMMA, without HMMA, on sm_90 occur in every kernel.
        tma: operands come through descriptors on sm_90.
        registers: most of them that a thread may use.
        architectures: where this launch is shipped.
    """

    name: str
    launch: Callable[[], object]
    launches: int = 1
    wide: bool = True
    tensor_cores: bool = False
    tma: bool = False
    registers: int = 255
    architectures: tuple[int, ...] = ARCHITECTURES


class _Utils:
    """Stands for the CUDA driver; the binary itself stands for the function loaded from it."""

    def load_binary(self, name, binary, shared, device):
        return object(), binary, 0, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED_LIMIT[device], "multiprocessor_count": 132}


class _Driver:
    """A device of an architecture, which records launches instead of making them."""

    def __init__(self, arch: int) -> None:
        self.arch, self.utils = arch, _Utils()
        self.cubins: list[Cubin] = []

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps a cache of kernels for each device

    def get_current_stream(self, device) -> int:
        return 0

    def launcher_cls(self, source, metadata):
        def launch(grid_x, grid_y, grid_z, stream, binary, *arguments):
            grid = grid_x, grid_y, grid_z
            self.cubins.append(_inspect(metadata, binary, grid))

        return launch


@cache
def _driver(arch: int) -> _Driver:
    """One for each architecture: a kernel once compiled launches through the driver it met."""
    return _Driver(arch)


def _run(tool: str, *arguments: str) -> str:
    command = [str(BINARIES / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def _disassemble(binary: bytes) -> tuple[int, int, dict[str, int]]:
    """Registers, bytes of local memory, and opcodes of a cubin; kept beside Triton's own cache."""
    name = hashlib.sha256(binary + Path(__file__).read_bytes()).hexdigest()
    kept = Path(os.environ["TRITON_CACHE_DIR"], f"{name}.json")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(_read_cubin(binary)))
        unfinished.replace(kept)
    return tuple(json.loads(kept.read_text()))


def _read_cubin(binary: bytes) -> tuple[int, int, dict[str, int]]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        sass = _run("cuobjdump", "-sass", file.name)
    numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.M)
    return numbers["REG"], numbers["LOCAL"] + numbers["STACK"], dict(Counter(opcodes))


def _inspect(metadata, binary: bytes, grid: tuple[int, int, int]) -> Cubin:
    registers, local, opcodes = _disassemble(binary)
    threads = 32 * metadata.num_warps
    return Cubin(metadata.name, grid, threads, registers, metadata.shared, local, opcodes)


@contextmanager
def compiling_for(arch: int) -> Iterator[list[Cubin]]:
    """Compile what is launched inside, and list it, one entry a launch.

    Raises what Triton raises: a kernel that does not compile, or needs too much shared memory.
    """
    driver = _driver(arch)
    driver.cubins = []
    triton.runtime.driver.set_active(driver)
    try:
        yield driver.cubins
    finally:
        triton.runtime.driver._active = None


def compile_case(op: str, index: int, arch: int) -> tuple[str, str, int, list[dict]]:
    """Compile one case of ``tests/cubins/<op>.py``; op, name of the case, architecture, cubins."""
    case = importlib.import_module(f"cubins.{op}").CASES[index]
    with compiling_for(arch) as cubins:
        case.launch()
    return op, case.name, arch, [dataclasses.asdict(cubin) for cubin in cubins]


def main(ops: list[str]) -> None:
    """Compile every case of the named ops and print what came of it."""
    jobs = [
        (op, index, arch)
        for op in ops
        for index, case in enumerate(importlib.import_module(f"cubins.{op}").CASES)
        for arch in case.architectures
    ]
    # Forks have everything imported already; nothing has started threads so far.
    with multiprocessing.get_context("fork").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        json.dump(pool.starmap(compile_case, jobs, chunksize=1), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
