"""How fast a model is on this machine: cold start, one window, from file to file, every stage.

What is measured where: *model* is :func:`psssr_fast.pipeline.restore_window` on a window that is
in the device's memory; *end to end* is a file in and a file out, decoding, resizing, blending and
encoding included; *cold start* is the import, the loading of the weights and the first window,
with all that is made or compiled on the way.
"""

import errno
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor, nn

from psssr_fast.attention import Problem, select_attention
from psssr_fast.config import Settings, settings_for
from psssr_fast.engine import EngineName, check_engine
from psssr_fast.errors import OutputError
from psssr_fast.files import Folder, whole_file
from psssr_fast.forecast import Forecaster, empty_networks, model_size
from psssr_fast.models.codec import WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import SIZES, ModelSize
from psssr_fast.pipeline import Networks, restore_window
from psssr_fast.runtime.choices import device_name
from psssr_fast.runtime.clock import (
    Idle,
    IdleClock,
    StageClock,
    copy_rate,
    matmul_rate,
    timed,
    wait_for,
)
from psssr_fast.runtime.cost import window_work
from psssr_fast.runtime.memory import measure_peak
from psssr_fast.runtime.planner import resized
from psssr_fast.runtime.ranges import STAGES, listening, profiler_range
from psssr_fast.upscaler import Upscaler
from psssr_fast.weights_source import EMBEDDED

RATE = 25  # frames a second of the clip that is made
SCALE = 4


@dataclass(frozen=True)
class Workload:
    """What to measure.

    Attributes:
        source: of the model; the name of a size that is not embedded gets random weights.
        frames, height, width: of a window, in output pixels.
        device, dtype: where and in what to compute.
        engine: that restores it.
        rounds: of which the median is taken.
        stages: measure each stage too.
        trace: where to write a Chrome trace of one window.
        offline: never touch the network.
    """

    source: str
    frames: int
    height: int
    width: int
    device: torch.device
    dtype: torch.dtype
    engine: EngineName = "fused"
    rounds: int = 3
    stages: bool = False
    trace: Path | None = None
    offline: bool = False


@dataclass(frozen=True)
class ColdStart:
    """Seconds until the first window was there; ``import_s`` is ``None`` if nobody measured it."""

    import_s: float | None
    load_s: float
    first_window_s: float


@dataclass(frozen=True)
class EndToEnd:
    """From file to file; ``skipped`` is the reason if it was not measured.

    ``idle`` tells what the thread that computes waited for. Opening the input and making one file
    of what was encoded are part of ``seconds``, but no wait.
    """

    frames: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    skipped: str | None = None
    idle: Idle | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a window, all its steps or decodes together.

    Attributes:
        seconds: median; the device was waited for before and after, so that the sum of all stages
            may exceed the time of a window.
        flops: of the plain pipeline.
        floor_s: what it would take if all operations ran at the rate of a matrix product, or all
            bytes at that of a copy, whichever is longer; both rates from this very run.
        floor_share: ``floor_s / seconds``. An engine that does less work may exceed 1.
    """

    name: str
    seconds: float
    flops: int
    floor_s: float
    floor_share: float


@dataclass(frozen=True)
class Rates:
    """What this device reached in this run: operations and bytes a second."""

    matmul_flops: float
    copy_bytes: float


@dataclass(frozen=True)
class Memory:
    """Bytes: of the weights, and what windows take besides, measured and predicted."""

    weights: int
    measured: int
    predicted: int


@dataclass(frozen=True)
class Result:
    """What :func:`measure` found."""

    model: str
    weights: str
    engine: str
    device: str
    device_name: str
    dtype: str
    torch: str
    threads: int
    size: tuple[int, int, int]
    rounds: int
    cold_start: ColdStart
    window_seconds: float
    window_flops: int
    model_fps: float
    memory: Memory
    end_to_end: EndToEnd
    rates: Rates
    stages: tuple[Stage, ...] | None = None
    trace: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def measure(workload: Workload, import_s: float | None, tell: Callable[[str], None]) -> Result:
    """Measure everything.

    Args:
        workload: what.
        import_s: how long importing this package took.
        tell: called with what is being done.

    Raises:
        ModelError, UsageError, OutOfMemory, OutputError: see :mod:`psssr_fast.errors`.
    """
    trace, device = workload.trace, workload.device
    _check_writable(trace)
    tell("loading, and a first window")
    size = model_size(workload.source, offline=workload.offline)
    upscaler, load_s = timed(device, lambda: load_upscaler(workload, size))
    window = _Window(workload, size, upscaler)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    cold = ColdStart(import_s, load_s, timed(device, window)[1])
    tell(f"{workload.rounds} more windows")
    seconds = statistics.median(timed(device, window)[1] for _ in range(workload.rounds))
    if device.type == "cuda":
        window.reserved = torch.cuda.max_memory_reserved(device)
    rates = Rates(matmul_rate(device, workload.dtype), copy_rate(device))
    tell("stages, memory, and from file to file")
    stages = window.stages(rates) if workload.stages else None
    write_trace(window, device, trace)
    return Result(
        model=size.name,
        weights="checkpoint" if _has_weights(workload.source) else "random",
        engine=upscaler.engine,
        device=str(device),
        device_name=device_name(device),
        dtype=str(workload.dtype).removeprefix("torch."),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        size=(workload.frames, workload.height, workload.width),
        rounds=workload.rounds,
        cold_start=cold,
        window_seconds=seconds,
        window_flops=sum(part.flops for part in window.work.values()),
        model_fps=workload.frames / seconds,
        memory=window.memory(),
        end_to_end=_file_to_file(upscaler, workload),
        rates=rates,
        stages=stages,
        trace=None if trace is None else str(trace),
    )


class _Window:
    """One window, ready to be restored again and again."""

    def __init__(self, workload: Workload, size: ModelSize, upscaler: Upscaler) -> None:
        self.workload, self.size, self.upscaler = workload, size, upscaler
        shape = self.shape = workload.frames, workload.height, workload.width
        device, element = workload.device, workload.dtype.itemsize
        self.picture = torch.rand(shape[0], 3, *shape[1:], device=device) * 2 - 1
        self.reserved = 0
        self.work = window_work(size, shape, upscaler.settings, element)

    def __call__(self) -> Tensor:
        return restore_window(self.upscaler.networks, self.picture, self.upscaler.settings)

    def stages(self, rates: Rates) -> tuple[Stage, ...]:
        """Medians of the stages' times."""
        clocks = []
        for _ in range(self.workload.rounds):
            clock = StageClock(self.workload.device)
            with listening(clock):
                self()
            clocks.append(clock.spent)
        found = []
        for name in STAGES:
            spent = statistics.median(clock.get(name, 0.0) for clock in clocks)
            if spent:
                work = self.work[name]
                floor = max(work.flops / rates.matmul_flops, work.bytes / rates.copy_bytes)
                found.append(Stage(name, spent, work.flops, floor, floor / spent))
        return tuple(found)

    def memory(self) -> Memory:
        """Peak of one window, beside what was predicted."""
        load, upscaler = self.workload, self.upscaler
        engine, sampling = check_engine(upscaler.engine), upscaler.settings.sampling
        networks = empty_networks(self.size, load.dtype, sampling, engine, load.device)
        forecast = Forecaster(self.size, networks, upscaler.settings, load.device, load.dtype)
        peak = forecast.peak(self.shape)
        if upscaler.networks.graphs is None:
            return Memory(forecast.weights, measure_peak(self, load.device), peak.total)
        # A replay takes nothing: what the graphs hold on to was taken when they were captured.
        return Memory(forecast.weights, self.reserved - forecast.weights, peak.captured)


def _has_weights(source: str) -> bool:
    return source in EMBEDDED or source not in SIZES or os.path.exists(source)


def load_upscaler(workload: Workload, size: ModelSize) -> Upscaler:
    """The model, with windows of the workload's size."""
    windows = resized(size.windows, workload.frames, workload.height, workload.width)
    settings = settings_for("released", windows)
    if _has_weights(workload.source):
        return Upscaler.from_pretrained(
            workload.source,
            device=workload.device,
            dtype=workload.dtype,
            settings=settings,
            engine=workload.engine,
            offline=workload.offline,
        )
    networks, attention = random_networks(size, workload.dtype, workload.device, settings)
    return Upscaler(networks, settings, size.name, attention, workload.engine)


def random_networks(
    size: ModelSize, dtype: torch.dtype, device: torch.device, settings: Settings
) -> tuple[Networks, str]:
    """Plain networks with random weights, which need no checkpoint to be timed, and the name of
    their attention."""
    masked = size.dit.attention_window is not None
    selected = select_attention(Problem(device, dtype, size.dit.dim // size.dit.heads, masked))
    empty = empty_networks(size, dtype, settings.sampling, "plain", device)
    codec = empty.codec.vae if isinstance(empty.codec, WanCodec) else empty.codec
    generator = torch.Generator(device).manual_seed(0)

    def random(like: Tensor) -> Tensor:
        made = torch.empty_like(like, device=device)
        spread = max(1, like[0].numel()) ** -0.5 if like.dim() else 1.0
        return made.normal_(std=spread, generator=generator)

    for network in (empty.base, empty.draft, codec):
        assert isinstance(network, nn.Module)
        weights = {name: random(tensor) for name, tensor in network.state_dict().items()}
        network.load_state_dict(weights, assign=True)
        network.requires_grad_(False)
        if isinstance(network, Dit):
            network.attention, network.windows = selected.attention, selected.windows
    context = None if empty.context is None else random(empty.context)
    return Networks(empty.base, empty.draft, empty.codec, context), selected.name


def _check_writable(path: Path | None) -> None:
    """Find out before the work whether a trace can be written; touches nothing.

    Raises:
        OutputError: it cannot.
    """
    if path is None:
        return
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, f"{path} is a folder")
        with Folder(path.absolute().parent) as folder:
            folder.stat(path.name)
            folder.clock()  # by a file that is made there for a moment
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path}: cannot be written: {reason}. Choose another file.") from error


def write_trace(run: Callable[[], object], device: torch.device, path: Path | None) -> None:
    """Write a Chrome trace of ``run``, with a range around each stage, if there is a path.

    Raises:
        OutputError: it cannot be written.
    """
    if path is None:
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        with listening(profiler_range):
            run()
        wait_for(device)
    # Torch writes to a second name that can be guessed, through links: in a folder of our own.
    with tempfile.TemporaryDirectory(prefix="psssr-trace-") as folder:
        try:
            recorded.export_chrome_trace(str(Path(folder, "trace.json")))
            with Path(folder, "trace.json").open("rb") as made, whole_file(path, True) as file:
                shutil.copyfileobj(made, file)
        except (OSError, RuntimeError) as error:
            raise OutputError(f"{path}: cannot be written: {error}") from error


def _file_to_file(upscaler: Upscaler, workload: Workload) -> EndToEnd:
    """Upscale a clip of two windows, made for it, from one temporary file to another."""
    if workload.height % (2 * SCALE) or workload.width % (2 * SCALE):
        return EndToEnd(skipped=f"height and width are no multiples of {2 * SCALE}")
    frames = 2 * workload.frames - upscaler.settings.windows.overlap_frames
    with tempfile.TemporaryDirectory(prefix="psssr-bench-") as folder:
        source, target = Path(folder, "in.mp4"), Path(folder, "out.mp4")
        try:
            write_clip(source, frames, workload.height // SCALE, workload.width // SCALE)
        except (av.FFmpegError, ValueError) as error:
            return EndToEnd(skipped=f"no clip could be made: {error}")
        clock = IdleClock(workload.device)
        with listening(clock):
            report = upscaler.upscale_video(source, target, scale=SCALE)
        idle = clock.idle(report.seconds, upscaler.queue)
    return EndToEnd(report.frames, report.seconds, report.fps, idle=idle)


def write_clip(path: Path, frames: int, height: int, width: int) -> None:
    """Write a small H.264 video of a pattern that moves."""
    y, x = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            waves = [np.sin((x * (1 + plane) + y + 3 * index) / 9) for plane in range(3)]
            picture = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
