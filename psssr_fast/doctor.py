"""What this installation can use, and the reason for everything that it cannot."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from subprocess import CalledProcessError

import av
import torch
from av.codec import Codec
from av.codec.codec import UnknownCodecError

from psssr_fast import __version__
from psssr_fast.attention import BACKENDS, Problem, choose_backend
from psssr_fast.errors import ModelError
from psssr_fast.loading import resolve_device
from psssr_fast.models.sizes import NANO, WAN_1_3B, ModelSize
from psssr_fast.native import native_problem
from psssr_fast.runtime.choices import VARIABLE, choices_path, recall
from psssr_fast.weights_report import verify
from psssr_fast.weights_source import EMBEDDED

ENCODERS = (
    "libx264", "libx265", "libsvtav1", "libvpx-vp9", "prores_ks", "ffv1",
    "h264_nvenc", "hevc_nvenc", "av1_nvenc",
)  # fmt: skip


@dataclass(frozen=True)
class Software:
    """Something installed, or the reason why it cannot be used."""

    name: str
    version: str | None
    problem: str | None = None


@dataclass(frozen=True)
class Device:
    """A processor that models can run on.

    Attributes:
        name: what ``--device`` takes.
        model: what it is.
        capability: CUDA compute capability.
        memory_bytes: of the device; ``None`` for the CPU.
        threads: that torch uses on it; ``None`` for GPUs.
    """

    name: str
    model: str
    capability: str | None = None
    memory_bytes: int | None = None
    threads: int | None = None

    def __str__(self) -> str:
        if self.memory_bytes is None:
            return f"{self.name}: {self.model}, {self.threads} threads"
        memory = self.memory_bytes / 2**30
        return f"{self.name}: {self.model}, compute capability {self.capability}, {memory:.1f} GiB"


@dataclass(frozen=True)
class BackendState:
    """An attention backend, and why it cannot be used; it can if there are no objections."""

    name: str
    objections: tuple[str, ...]


@dataclass(frozen=True)
class AttentionState:
    """The attention backends for what one model asks of them."""

    problem: str
    backends: tuple[BackendState, ...]


@dataclass(frozen=True)
class Encoder:
    """A video encoder, and whether this build of PyAV has it."""

    name: str
    present: bool


@dataclass(frozen=True)
class Model:
    """A built-in model: its size and hash, or what is wrong with it."""

    name: str
    parameters: int
    sha256: str
    problem: str | None


@dataclass(frozen=True)
class Examination:
    """What :func:`examine` found."""

    software: tuple[Software, ...]
    devices: tuple[Device, ...]
    attention: tuple[AttentionState, ...]
    encoders: tuple[Encoder, ...]
    models: tuple[Model, ...]
    cache: str
    choices: str


def examine() -> Examination:
    """Look at everything. Missing packages, drivers and devices are findings, not errors."""
    return Examination(
        software=_software(),
        devices=_devices(),
        attention=tuple(_attention(size) for size in (WAN_1_3B, NANO)),
        encoders=tuple(Encoder(name, has_encoder(name)) for name in ENCODERS),
        models=tuple(_model(name) for name in EMBEDDED),
        cache=_cache(),
        choices=_choices(),
    )


def _software() -> tuple[Software, ...]:
    versions = sorted(av.library_versions.items())
    libraries = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in versions)
    problem = native_problem()
    return (
        Software("psssr_fast", __version__),
        Software("python", f"{platform.python_version()} on {platform.platform()}"),
        Software("torch", torch.__version__),
        cuda_state(),
        triton_state(),
        Software("native extension", None if problem else "loaded", problem),
        Software("PyAV", av.__version__),
        Software("FFmpeg", f"{av.ffmpeg_version_info} ({libraries})"),
    )


def cuda_state() -> Software:
    """The CUDA that torch was built for, and why it cannot be used."""
    version = torch.version.cuda
    if version is None:
        return Software("CUDA", None, "this build of torch is for the CPU only")
    if not torch.cuda.is_available():
        return Software("CUDA", None, f"torch is built for CUDA {version}, but sees no device")
    return Software("CUDA", version)


def triton_state() -> Software:
    """Whether Triton is installed and runs a kernel here."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return Software("triton", None, "not installed; pip install 'psssr_fast[triton]'")
    if not torch.cuda.is_available():
        return Software("triton", None, f"{version} is installed, but has no CUDA device to run on")
    try:
        right = triton_runs("cuda")
    # What its compiler, the C compiler behind that, or the driver raise.
    except (ImportError, OSError, RuntimeError, AttributeError, CalledProcessError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Software("triton", None, f"{version} does not run: {reason}")
    if not right:
        return Software("triton", None, f"{version} runs, but computes wrong numbers")
    return Software("triton", f"{version}, runs")


def triton_runs(device: str) -> bool:
    """Compile and run a kernel that doubles 128 numbers; whether they come out right."""
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def double(x_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        place = tl.arange(0, BLOCK)
        tl.store(out_ptr + place, 2 * tl.load(x_ptr + place))

    x = torch.arange(128.0, device=device)
    out = torch.empty_like(x)
    double[(1,)](x, out, BLOCK=128)
    return torch.equal(out, 2 * x)


def has_encoder(name: str) -> bool:
    """Whether this build of PyAV can encode ``name``. Hardware encoders need their hardware too."""
    try:
        Codec(name, "w")
    except UnknownCodecError:
        return False
    return True


def _devices() -> tuple[Device, ...]:
    cpu = Device("cpu", platform.processor() or platform.machine(), threads=torch.get_num_threads())
    found = [cpu]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        capability = f"{about.major}.{about.minor}"
        found.append(Device(f"cuda:{index}", about.name, capability, about.total_memory))
    return tuple(found)


def _attention(size: ModelSize) -> AttentionState:
    device = resolve_device("auto")
    dtype = torch.float32 if size is NANO and device.type == "cpu" else torch.bfloat16
    dit = size.dit
    problem = Problem(device, dtype, dit.dim // dit.heads, dit.attention_window is not None)
    return AttentionState(
        problem=f"{size.name}: {problem}; auto is {choose_backend(problem).name}",
        backends=tuple(
            BackendState(backend.name, tuple(backend.objections(problem))) for backend in BACKENDS
        ),
    )


def _model(name: str) -> Model:
    try:
        report = verify(name)
    except ModelError as error:
        return Model(name, 0, "", str(error))
    parameters = sum(part.parameters for part in report.parts)
    return Model(name, parameters, report.sha256, report.problem or None)


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return os.path.abspath(HF_HUB_CACHE)


def _choices() -> str:
    """Where measured choices are kept, and how many hold for this machine."""
    path = choices_path()
    if path is None:
        return f"off, by {VARIABLE}"
    count = len(recall(resolve_device("auto")))
    return f"{path}: {count} for this machine" + ("" if count else "; psssr warmup makes them")
