"""What happens when memory runs out or numbers break: the same picture, computed in another way.

Windows and tiles belong to the settings and never change here. What changes is how much of a window
is in memory at once (:class:`~psssr_fast.runtime.execution.Execution`), step by step, each with
less; and, for a window in which numbers overflowed, what the networks compute in.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from psssr_fast.config import Settings
from psssr_fast.engine import GraphedVae
from psssr_fast.errors import NotFinite, OutOfMemory
from psssr_fast.faults import fault
from psssr_fast.models.codec import Codec, WanCodec
from psssr_fast.models.dit import DitOutput
from psssr_fast.pipeline import Networks, memory_guard, restore_window
from psssr_fast.precision import in_float32
from psssr_fast.resize import resize_frames
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.residence import Room, SharedLock
from psssr_fast.runtime.vae_engine import FusedVae
from psssr_fast.sampling import Transformer

Answer = TypeVar("Answer")
FEWER_FRAMES = (2, 1)
_LODGERS = SharedLock()  # of the process: who sends networks away must be the only one to run
logger = logging.getLogger(__name__)


def ladder(start: Execution, device: torch.device, frames: int) -> Iterator[Execution]:
    """Executions after ``start``, each with less in memory and none like one before it.

    Args:
        start: what did not fit.
        device: where; only a CUDA device has graphs to drop, and a CPU to send networks to.
        frames: of the window.
    """
    now, cuda = start, device.type == "cuda"
    if now.batched_decodes:
        yield (now := replace(now, batched_decodes=False))
    if cuda and now.graphs:
        yield (now := replace(now, graphs=False))
    for fewer in FEWER_FRAMES:
        if fewer < min(now.frames or frames, frames):
            yield (now := replace(now, frames=fewer))
    if cuda and not now.offload:
        yield replace(now, offload=True)


def describe(execution: Execution, before: Execution) -> str:
    """What one step of the ladder changes."""
    if execution.offload > before.offload:
        return "networks that wait are kept on the CPU"
    if execution.frames != before.frames:
        return f"at most {execution.frames} of a window's frames at once"
    if execution.graphs < before.graphs:
        return "CUDA graphs are dropped"
    return "the two pictures of a window are decoded one after the other"


@dataclass
class Recovery:
    """Restores the windows of one job and gets it over what goes wrong.

    It remembers what worked, for the windows to come. One thread uses it at a time.

    Attributes:
        networks: the model.
        settings: everything that decides the picture.
        execution: how windows are computed now.
    """

    networks: Networks
    settings: Settings
    execution: Execution = field(default_factory=Execution)

    _steps: list[str] = field(default_factory=list)
    _recomputed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._device = self.networks.device

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for every step taken, and one that names the frames computed again."""
        if not self._recomputed:
            return tuple(self._steps)
        return *self._steps, (
            f"numbers overflowed in {_name(self.networks.dtype)}: frames "
            f"{ranges(self._recomputed)} were computed again in float32"
        )

    @property
    def rest(self) -> torch.device:
        """Where pictures lie that no network works on."""
        return torch.device("cpu") if self.execution.offload else self._device

    def resize(self, frames: Sequence[Tensor], height: int, width: int) -> Tensor:
        """Frames ``[3, H, W]`` in [-1, 1] as one clip of output size, where pictures rest."""
        count = len(frames)

        def run() -> Tensor:
            fault("resize")
            if self.execution.frames is None:
                return self._resized(frames, height, width)
            result = frames[0].new_empty((count, 3, height, width), device=self.rest)
            for part in self.execution.slices(count):
                result[part] = self._resized(frames[part], height, width)
            return result

        return self.attempt(run, count, height, width)

    def _resized(self, frames: Sequence[Tensor], height: int, width: int) -> Tensor:
        low = torch.stack(tuple(frames)).to(self._device)
        return resize_frames(low, height, width, self.settings.resize).to(self.rest)

    def restore(self, picture: Tensor, first: int = 0) -> Tensor:
        """:func:`~psssr_fast.pipeline.restore_window`, in as many ways as it takes.

        Args:
            picture: ``[frames, 3, height, width]`` in [-1, 1], anywhere.
            first: index in the video of its first frame.

        Returns:
            The restored window, where pictures rest.

        Raises:
            OutOfMemory: it does not fit in any way.
            NotFinite: it is not a picture even in fp32.
        """
        try:
            return self._window(self.networks, picture)
        except NotFinite as error:
            frames = [first + frame for frame in error.frames]
        if self.networks.dtype == torch.float32:
            raise self._broken(frames)
        if not self._recomputed:  # all of them are named when the job is done
            logger.warning("frames %s: numbers overflowed: again in float32", ranges(frames))
        with _at_home(self._device):
            exact = in_float32(self.networks)
        try:
            result = self._window(exact, picture)
        except NotFinite as error:
            raise self._broken([first + frame for frame in error.frames]) from None
        self._recomputed.update(frames)
        return result

    def attempt(self, run: Callable[[], Answer], frames: int, height: int, width: int) -> Answer:
        """Do ``run``, with less and less in memory while it does not fit.

        Args:
            run: reads :attr:`execution`; has no effect if it fails.
            frames, height, width: what it works on.

        Raises:
            OutOfMemory: nothing is left to try.
        """
        while True:
            try:
                with memory_guard(frames, height, width, self._device):
                    return run()
            except OutOfMemory as error:
                reason = str(error)  # the error itself would keep the failed run's tensors alive
            self._step_down(reason, frames)

    def _window(self, networks: Networks, picture: Tensor) -> Tensor:
        def run() -> Tensor:
            execution = self.execution
            with _lodging(networks, execution, self._device) as chosen:
                here = picture.to(self._device)
                return restore_window(chosen, here, self.settings, execution).to(self.rest)

        frames, _, height, width = picture.shape
        return self.attempt(run, frames, height, width)

    def _step_down(self, reason: str, frames: int) -> None:
        """Take the next step of the ladder, or give up."""
        before = self.execution
        following = next(ladder(before, self._device, frames), None)
        if following is None:
            raise OutOfMemory(f"{reason}; tried: {'; '.join(self._steps) or 'nothing smaller'}")
        _free(self.networks, self._device, graphs=following.graphs)
        what = reason.partition(". ")[0]
        self._steps.append(f"{what}: {describe(following, before)}; the picture stays the same")
        logger.info(self._steps[-1])
        self.execution = following

    def _broken(self, frames: list[int]) -> NotFinite:
        return NotFinite(
            f"frames {ranges(frames)}: the networks gave NaN or infinity, in float32 too, and no "
            "picture; the model is damaged or was not made for such input: look at it with "
            "`psssr models verify`, or take another model",
            tuple(frames),
        )


def ranges(numbers: set[int] | list[int]) -> str:
    """``0-7, 12``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def with_execution(networks: Networks, execution: Execution) -> Networks:
    """Networks that leave out what ``execution`` forbids: graphs, many frames at once."""
    graphs = networks.graphs if execution.graphs else None
    codec = networks.codec
    if isinstance(codec, WanCodec):
        vae = codec.vae
        if isinstance(vae, GraphedVae) and not execution.graphs:
            vae = vae.vae
        if isinstance(vae, FusedVae) and execution.frames is not None:
            # On a CPU torch lays out a single picture in another way, and so rounds differently.
            least = 2 if networks.device.type == "cpu" else 1
            vae = _SlicedVae(vae, max(least, execution.frames))
        codec = codec if vae is codec.vae else WanCodec(vae)
    if graphs is networks.graphs and codec is networks.codec:
        return networks
    return replace(networks, graphs=graphs, codec=codec)


class _SlicedVae:
    """A VAE whose layers take few frames at once."""

    def __init__(self, vae: FusedVae, frames: int) -> None:
        self._vae, self._frames = vae, frames

    def encode(self, picture: Tensor, *, chunked: bool = False) -> Tensor:
        return self._vae.encode(picture, chunked=chunked, at_once=self._frames)

    def decode(self, latents: Tensor, *, chunked: bool = False) -> Tensor:
        return self._vae.decode(latents, chunked=chunked, at_once=self._frames)


def _at_home(device: torch.device) -> AbstractContextManager[None]:
    """While this is entered, nobody sends networks away."""
    return _LODGERS.shared() if device.type == "cuda" else nullcontext()


@contextmanager
def _lodging(networks: Networks, execution: Execution, device: torch.device) -> Iterator[Networks]:
    """The networks for one window: all on their device, or taking turns there."""
    chosen = with_execution(networks, execution)
    if device.type != "cuda" or not execution.offload:
        with _at_home(device):
            yield chosen
        return
    with _LODGERS.exclusive():
        if networks.graphs is not None:  # other jobs' read weights from where they will not be
            networks.graphs.clear()
        with Room(device, modules_of(networks)) as room:
            yield in_turns(chosen, modules_of(networks), room)


def modules_of(networks: Networks) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Base, draft and codec."""
    codec: object = networks.codec
    if isinstance(codec, WanCodec):
        codec = codec.vae.vae if isinstance(codec.vae, GraphedVae) else codec.vae
    modules = networks.base, networks.draft, codec
    assert all(isinstance(module, nn.Module) for module in modules)
    return modules  # type: ignore[return-value]


def in_turns(
    networks: Networks, modules: tuple[nn.Module, nn.Module, nn.Module], room: Room
) -> Networks:
    """Networks that enter the room before they run, which sends out the one that is there."""
    base, draft, codec = modules
    return replace(
        networks,
        base=_TransformerInTurn(networks.base, partial(room.enter, base)),
        draft=_TransformerInTurn(networks.draft, partial(room.enter, draft)),
        codec=_CodecInTurn(networks.codec, partial(room.enter, codec)),
    )


class _TransformerInTurn:
    def __init__(self, network: Transformer, enter: Callable[[], None]) -> None:
        self._network, self._enter = network, enter

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._network.parameters()

    def prepare_features(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        self._enter()
        return self._network.prepare_features(features)

    def step(
        self, latents: Tensor, timestep: float, context: Any, features: Sequence[Tensor]
    ) -> DitOutput:
        self._enter()
        return self._network.step(latents, timestep, context, features)


class _CodecInTurn:
    def __init__(self, codec: Codec, enter: Callable[[], None]) -> None:
        self._codec, self._enter = codec, enter
        self.frames_multiple, self.pixels_multiple = codec.frames_multiple, codec.pixels_multiple

    def encode(self, picture: Tensor) -> tuple[Tensor, Tensor | None]:
        self._enter()
        return self._codec.encode(picture)

    def decode(
        self, latents: Tensor, condition: Tensor | None, drafts: Sequence[bool] = ()
    ) -> Tensor:
        self._enter()
        return self._codec.decode(latents, condition, drafts)


def _free(networks: Networks, device: torch.device, *, graphs: bool) -> None:
    """Give back what only makes the next window faster."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if networks.graphs is not None and not graphs:
            networks.graphs.clear()
        torch.cuda.empty_cache()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
