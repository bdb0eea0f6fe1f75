"""Upscaling by a plan: the windows of every job are chosen, or at least explained, before it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from psssr_fast.config import Settings
from psssr_fast.engine import EngineName, check_engine
from psssr_fast.forecast import (
    Forecaster,
    empty_networks,
    free_memory,
    known_rates,
    model_size,
    read_rates,
)
from psssr_fast.models.sizes import ModelSize
from psssr_fast.resize import output_size
from psssr_fast.runtime.choices import device_name
from psssr_fast.runtime.planner import GIB, Job, Limit, Plan, check_fit, make_plan
from psssr_fast.upscaler import Report, Upscaler
from psssr_fast.video import VideoInfo, probe


@dataclass(frozen=True)
class Wishes:
    """What the user says about the plan.

    Attributes:
        vram_limit: GiB; ``None`` is what is free.
        fixed: the windows were asked for and stay as they are.
        rates: a document of ``psssr bench --json``.
    """

    vram_limit: float | None = None
    fixed: bool = False
    rates: str | None = None

    def limit(self, device: torch.device) -> Limit | None:
        """How much memory there may be."""
        if self.vram_limit is None:
            return free_memory(device)
        return Limit(int(self.vram_limit * GIB), "--vram-limit")


class JobPlanner:
    """Plans one job after the other for the same model; what it finds out it keeps.

    Args:
        size: of the model.
        settings: with the model's windows, or those asked for.
        device, dtype, engine: what computes.
        wishes: of the user.
    """

    def __init__(
        self,
        size: ModelSize,
        settings: Settings,
        device: torch.device,
        dtype: torch.dtype,
        engine: EngineName,
        wishes: Wishes,
    ) -> None:
        self.settings, self.wishes = settings, wishes
        self.device, self.size = device, size
        networks = empty_networks(size, dtype, settings.sampling, engine, device)
        self._frames_multiple = networks.codec.frames_multiple
        if wishes.rates is None:
            rates = known_rates(device, dtype)
        else:
            rates = read_rates(wishes.rates, size.name, device_name(device), dtype)
        graphs = engine == "fused" and device.type == "cuda"
        self._forecast = Forecaster(size, networks, settings, device, dtype, rates, graphs)

    def plan(self, info: VideoInfo, scale: float | None, height: int | None) -> Plan:
        """The plan of a job, whether it fits or not.

        Raises:
            OutOfMemory: the windows are ours to choose, and not even the smallest fit.
            UsageError: no such output size.
        """
        size = output_size(info.height, info.width, scale, height)
        return make_plan(
            Job(info.frames or None, info.height, info.width, *size),
            self.settings.windows,
            self._forecast,
            self.wishes.limit(self.device),
            fixed=self.wishes.fixed,
            frames_multiple=self._frames_multiple,
            batches=self.device.type == "cuda",  # on a CPU it takes 1.07 times as long
        )

    def refuse(self, plan: Plan) -> None:
        """Raise OutOfMemory unless a plan fits."""
        check_fit(plan, "--window" if self.wishes.fixed else "a window of")


class PlannedUpscaler(Upscaler):
    """An upscaler that plans every file first.

    With a limit the plan decides the windows, and what does not fit is refused; without one the
    windows stay, and the plan only explains them.

    Args:
        upscaler: what runs.
        source: of its model.
        wishes: of the user.
        tell: called with every line of the explanation; ``None`` to keep quiet.
        offline: never touch the network.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        source: str,
        wishes: Wishes,
        tell: Callable[[str], None] | None,
        offline: bool = False,
    ) -> None:
        self.__dict__.update(vars(upscaler))
        self._plain, self._tell = upscaler, tell
        self._decides = wishes.vram_limit is not None
        networks = upscaler.networks
        self._planner = JobPlanner(
            model_size(source, offline=offline),
            upscaler.settings,
            networks.device,
            networks.dtype,
            check_engine(upscaler.engine),
            wishes if self._decides else replace(wishes, fixed=True),
        )

    def upscale_video(self, src: str | Path, dst: str | Path, **options: Any) -> Report:
        """Plan, then :meth:`Upscaler.upscale_video`."""
        guard = {name: options[name] for name in ("limits", "sandbox") if name in options}
        plan = self._planner.plan(probe(src, **guard), options.get("scale"), options.get("height"))
        if self._tell is not None:
            for title, text in plan.describe().items():
                self._tell(f"{src}: {title}: {text}")
        chosen = copy.copy(self._plain)
        together = plan.decodes == "together"
        chosen.execution = replace(self._plain.execution, batched_decodes=together)
        if self._decides:
            self._planner.refuse(plan)
            chosen.settings = replace(self._plain.settings, windows=plan.windows)
        return chosen.upscale_video(src, dst, **options)
