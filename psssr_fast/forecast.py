"""What a model will need on a device, found out without its weights and before anything runs.

Memory comes from a rehearsal: the real pipeline, on the meta device. Work comes from the cost
model. Time comes from rates that were measured, here by ``psssr bench`` or once on known cards;
without any there is none.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psssr_fast.attention.triton import windows_triton
from psssr_fast.checkpoint import find_parts
from psssr_fast.config import Sampling, Settings, Windows
from psssr_fast.engine import EngineName, fuse
from psssr_fast.errors import UsageError
from psssr_fast.models.codec import NanoCodec, WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.prompt import TEXT_LENGTH
from psssr_fast.models.sizes import SIZES, ModelSize, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.pipeline import Networks, restore_window
from psssr_fast.runtime.codec_engine import FusedNanoCodec, can_fuse
from psssr_fast.runtime.cost import Shape, Work, window_work
from psssr_fast.runtime.cpu import fastest_dtype
from psssr_fast.runtime.dit_engine import FusedDit
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.memory import Peak, rehearse, tensor_bytes
from psssr_fast.runtime.planner import (
    Job,
    Limit,
    Need,
    Time,
    count_all,
    shape_of,
)
from psssr_fast.weights_parts import assemble
from psssr_fast.weights_source import find_source

PICTURE_BYTES = 3 * 4  # of a pixel: RGB in fp32
ON_THEIR_WAY = 3  # frames
SHARE_OF_FREE = 0.9  # of the memory that is free now: other things will want some of it

# bf16 matrix products a second. H100 and H200: measured on one card of each. A100: its data sheet.
KNOWN_RATES = {"H100": 798e12, "H200": 788e12, "A100": 312e12}


@dataclass(frozen=True)
class Rates:
    """How fast a device is.

    Attributes:
        stages: floating-point operations a second by stage; or one for all, named ``"all"``.
        at_least: the rates cannot be reached, so that times are lower bounds.
        source: where they come from.
    """

    stages: Mapping[str, float]
    at_least: bool
    source: str

    def seconds(self, work: Mapping[str, Work]) -> float:
        """Of one window."""
        fallback = self.stages.get("all")
        return sum(
            stage.flops / (self.stages.get(name) or fallback or float("inf"))
            for name, stage in work.items()
        )


def known_rates(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """Of cards whose matrix products were measured; a time from them is a lower bound."""
    if device.type != "cuda" or not torch.cuda.is_available() or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    for card, rate in KNOWN_RATES.items():
        if card in name:
            source = f"at the {rate / 1e12:.0f} TFLOP/s of matrix products that {card}s reach"
            return Rates({"all": rate}, True, source)
    return None


def read_rates(path: str | Path, model: str, device: str, dtype: torch.dtype) -> Rates:
    """The rates in a document of ``psssr bench --json``.

    Raises:
        UsageError: the file is not one, or it is of another model, device or dtype.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        measured = content["schema"] == "psssr.bench/1" and content
        was = (measured["model"], measured["device_name"], measured["dtype"])
        window = {"all": measured["window_flops"] / measured["window_seconds"]}
        stages = {
            stage["name"]: stage["flops"] / stage["seconds"] for stage in measured["stages"] or ()
        }
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"--rates {path}: not a document of `psssr bench --json`: {type(error).__name__}: "
            f"{error}; make one with `psssr bench --stages --json > FILE`"
        ) from None
    wanted = (model, device, str(dtype).removeprefix("torch."))
    if was != wanted:
        raise UsageError(
            f"--rates {path}: measured with {', '.join(was)}, wanted {', '.join(wanted)}; run "
            "`psssr bench` with these"
        )
    return Rates({**window, **stages}, False, f"by the rates in {path}")


def model_size(source: str | Path, *, offline: bool = False) -> ModelSize:
    """Dimensions of a model, by its name or by the headers of its files.

    Raises:
        ModelError: there is no such model, or its files make none.
    """
    if str(source) in SIZES and not os.path.exists(source):
        return SIZES[str(source)]
    path = find_source(source, offline=offline)
    found = find_parts(path)
    if found.broken:
        raise found.broken[0].error
    return assemble(found.parts, path, found.pickles).size


def choose_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """The dtype of a name; without one that which a model is loaded in by default."""
    if name is not None:
        return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" else fastest_dtype()


def empty_networks(
    size: ModelSize,
    dtype: torch.dtype,
    sampling: Sampling,
    engine: EngineName,
    device: torch.device,
) -> Networks:
    """The networks of a model on the meta device: shapes without numbers.

    They do what they would do on ``device``, as far as that decides what memory is taken.
    """
    windowed = size.dit.attention_window is not None
    with torch.device("meta"):
        windows = windows_triton if windowed and device.type == "cuda" else None
        base, draft = Dit(size.dit, windows=windows), Dit(size.dit, draft=True, windows=windows)
        codec: WanVae | NanoCodec
        codec = WanVae(size.codec) if isinstance(size.codec, VaeSize) else NanoCodec(size.codec)
        context = torch.empty(1, TEXT_LENGTH, size.dit.text_dim, dtype=dtype)
    for network in (base, draft, codec):
        network.to(dtype).eval().requires_grad_(False)
    if isinstance(codec, NanoCodec):  # as it is loaded
        codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = Networks(
        base=base,
        draft=draft,
        codec=WanCodec(codec) if isinstance(codec, WanVae) else codec,
        context=context if size.dit.text_dim else None,
    )
    if engine == "plain":
        return networks
    fused = fuse(networks, sampling)
    if isinstance(codec, NanoCodec) and can_fuse(device, dtype):
        fused = replace(fused, codec=FusedNanoCodec(codec))
    if windowed:  # the engine has this way on a CPU as well, where no backend asks for it
        for transformer in (fused.base, fused.draft):
            assert isinstance(transformer, FusedDit)
            transformer.windows = windows_triton
    return fused


class Forecaster:
    """Knows what a model needs on a device; see :class:`psssr_fast.runtime.planner.Forecast`.

    Args:
        size: of the model.
        networks: the model on the meta device, as :func:`empty_networks` makes it or any other.
        settings: what is decided besides the windows.
        device: where it is to run.
        dtype: what it computes in.
        rates: of the device, if they are known.
        graphs: whether the stages will be captured in CUDA graphs.
    """

    def __init__(
        self,
        size: ModelSize,
        networks: Networks,
        settings: Settings,
        device: torch.device,
        dtype: torch.dtype,
        rates: Rates | None = None,
        graphs: bool = False,
    ) -> None:
        self.size, self.networks, self.settings = size, networks, settings
        self.device, self.dtype, self.rates, self.graphs = device, dtype, rates, graphs
        parts = (networks.base, networks.draft, networks.codec, networks.context)
        self.weights = tensor_bytes(_tensors(parts))
        self._peaks: dict[tuple[Shape, bool], Peak] = {}

    def peak(self, shape: Shape, together: bool = False) -> Peak:
        """Of :func:`~psssr_fast.pipeline.restore_window` on one window; kept for the next time.

        ``together``: with both decodes as one batch.
        """
        key = shape, together
        if key not in self._peaks:
            frames, height, width = shape
            picture = torch.empty(frames, 3, height, width, device="meta")
            execution = Execution(batched_decodes=together)
            self._peaks[key] = rehearse(
                lambda: restore_window(self.networks, picture, self.settings, execution),
                self.device,
            )
        return self._peaks[key]

    def need(self, job: Job, windows: Windows, together: bool = False) -> Need:
        """Memory of a clip; ``together`` if both decodes of a window run as one batch."""
        peak = self.peak(shape_of(job, windows), together)
        return Need(
            weights=self.weights,
            clip=self.clip_bytes(job, windows),
            window=peak.captured if self.graphs else peak.bytes,
            scratch=peak.scratch,
            stage=peak.stage,
        )

    def clip_bytes(self, job: Job, windows: Windows) -> int:
        """What the upscaler keeps while a window is restored.

        That is the low-resolution window, the enlarged one, the sum of its tiles if there are
        several; and, from the second window on, the last result, whose frames are being handed
        out, the frames it shares with this one, and a few on their way. On the CPU also the
        frames read ahead.
        """
        frames = shape_of(job, windows)[0]
        over_time, down, across = count_all(job, windows)
        small = job.input_height * job.input_width * PICTURE_BYTES
        large = job.height * job.width * PICTURE_BYTES
        pictures = frames * (2 if down * across > 1 else 1)
        if over_time != 1:
            pictures += frames + windows.overlap_frames + ON_THEIR_WAY
        low = frames
        if self.device.type == "cpu":
            low += min(2 * frames - windows.overlap_frames, job.frames or 2 * frames)
        return pictures * large + low * small

    def work(self, job: Job, windows: Windows) -> dict[str, Work]:
        """Of one window by stage."""
        return window_work(self.size, shape_of(job, windows), self.settings, self.dtype.itemsize)

    def flops(self, job: Job, windows: Windows) -> int:
        """Of one window."""
        return sum(stage.flops for stage in self.work(job, windows).values())

    def seconds(self, job: Job, windows: Windows) -> Time | None:
        """Of one window."""
        if self.rates is None:
            return None
        seconds = self.rates.seconds(self.work(job, windows))
        return Time(seconds, self.rates.at_least, self.rates.source)


def free_memory(device: torch.device) -> Limit | None:
    """Most of what is free on a device now; ``None`` where the system does not say."""
    if device.type == "cuda":
        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = _free_ram()
    if free is None:
        return None
    return Limit(int(SHARE_OF_FREE * free), f"{SHARE_OF_FREE:.0%} of what is free on {device}")


def _free_ram() -> int | None:
    """Of this machine, or of the container this runs in, whichever is less."""
    found = []
    available = _number_in(Path("/proc/meminfo"), "MemAvailable:")
    if available is not None:
        found.append(available * 1024)
    group = Path("/sys/fs/cgroup")
    most, used = _number_in(group / "memory.max"), _number_in(group / "memory.current")
    if most is not None and used is not None:
        found.append(max(0, most - used))
    return min(found, default=None)


def _number_in(path: Path, name: str = "") -> int | None:
    """The number after ``name`` in a text file of the kernel."""
    try:
        words = path.read_text(encoding="ascii").split()
    except OSError:
        return None
    place = words.index(name) + 1 if name in words else 0
    return int(words[place]) if words[place : place + 1] and words[place].isdigit() else None


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors that networks of any kind hold on to."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    inside: Iterable[Any] = ()
    if isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
        inside = vars(value).values()
    elif isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    elif type(value).__module__.startswith("psssr_fast."):
        inside = vars(value).values()
    for item in inside:
        yield from _tensors(item, seen)
