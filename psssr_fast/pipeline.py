"""One window of video through the networks; everything above it only cuts, blends and stores."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from psssr_fast.config import Settings
from psssr_fast.errors import NotFinite, OutOfMemory
from psssr_fast.models.codec import Codec
from psssr_fast.ops.frequency_update import update_frequencies
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.graphs import GraphCache
from psssr_fast.runtime.ranges import stage
from psssr_fast.sampling import Transformer, base_step, draft_steps, make_schedule
from psssr_fast.windows import crop_clip, pad_clip

OUT_OF_MEMORY = ("allocate memory", "out of memory", "alloc_failed")
AS_IT_IS = Execution()


@dataclass(frozen=True)
class Networks:
    """The networks of a model, on their device and in their dtype, ready to run.

    Attributes:
        base, draft: the transformers.
        codec: between pictures and latents.
        context: the prompt's embedding ``[1, tokens, text_dim]``; ``None`` if the transformers
            know it, or have no use for one.
        graphs: captured steps, for networks that can be captured.
        device: where the networks run; by default where the base is now. Parameters do not tell it
            later: another thread may have sent them to the CPU for the length of a window.
    """

    base: Transformer
    draft: Transformer
    codec: Codec
    context: Tensor | None
    graphs: GraphCache | None = None
    device: torch.device = None  # type: ignore[assignment]  # never None once made

    def __post_init__(self) -> None:
        if self.device is None:
            object.__setattr__(self, "device", next(self.base.parameters()).device)

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return next(self.base.parameters()).dtype

    def run(
        self, name: Hashable, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """``function(*inputs)``, from a captured graph where there is one."""
        if self.graphs is None:
            return function(*inputs)
        return self.graphs.run(name, function, *inputs)


def restore_window(
    networks: Networks, picture: Tensor, settings: Settings, execution: Execution = AS_IT_IS
) -> Tensor:
    """Restore one window that already has its output size.

    Args:
        networks: the model.
        picture: ``[frames, 3, height, width]`` in [-1, 1], on the networks' device, fp32.
        settings: sampling and frequency-domain update.
        execution: how much is in memory at once; the picture does not depend on it.

    Returns:
        The restored window, shaped like ``picture``, in [-1, 1], fp32.

    Raises:
        OutOfMemory: the window does not fit.
        NotFinite: the networks gave NaN or infinity.
    """
    codec = networks.codec
    padded = pad_clip(picture, codec.frames_multiple, codec.pixels_multiple)
    frames, _, height, width = picture.shape
    with memory_guard(frames, height, width, picture.device), torch.no_grad():
        with stage("encode"):
            latents, condition = codec.encode(_batched(padded).to(networks.dtype))
        base, *drafts = _sample(networks, latents, settings)
        if not settings.frequency_update.iterate:
            drafts = drafts[-1:]  # the other steps' estimates are never seen
        together = 2 if execution.batched_decodes else 1
        decoded = _decode(codec, [base, *drafts], condition, picture, settings, together)
        result, bounds = next(decoded)
        found = [bounds]
        for sharp, bounds in decoded:
            found.append(bounds)
            with stage("update"):
                result = _update(result, sharp, settings, execution)
            del sharp  # before the next is decoded
        _check_finite(found, result)
        return result.mul_(2).sub_(1).clamp_(-1, 1)


@contextmanager
def memory_guard(frames: int, height: int, width: int, device: torch.device) -> Iterator[None]:
    """Turn torch's ways of running out of memory into :class:`OutOfMemory`, naming the window."""
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError) as error:  # torch's own error is one of the latter
        text = str(error).lower()  # Triton, cuBLAS and CUDA itself raise plain RuntimeErrors
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if known or any(sign in text for sign in OUT_OF_MEMORY):
            raise OutOfMemory(
                f"out of memory on a window of {frames} frames {width}x{height} on {device}. Use "
                "--vram-limit GIB, which chooses windows that fit, smaller windows (--window "
                "FRAMESxHEIGHTxWIDTH with --overlap FRAMESxPIXELS), or a smaller output"
            ) from error
        raise


def _sample(networks: Networks, latents: Tensor, settings: Settings) -> tuple[Tensor, ...]:
    """Estimates of all steps: the base's, then the draft's on the base's features."""
    sampling, context = settings.sampling, networks.context
    schedule = make_schedule(sampling)

    def base(low: Tensor) -> tuple[Tensor, ...]:
        step, features = base_step(networks.base, low, context, schedule)
        return step.estimate, step.next_latents, *features

    def draft(low: Tensor, state: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        steps = draft_steps(networks.draft, state, low, features, context, schedule, sampling)
        return tuple(step.estimate for step in steps)

    with stage("base"):
        estimate, state, *features = networks.run(("base", sampling), base, latents)
    with stage("draft"):
        drafts = networks.run(("draft", sampling), draft, latents, state, *features)
    return estimate, *drafts


def _decode(
    codec: Codec,
    estimates: Sequence[Tensor],
    condition: Tensor | None,
    like: Tensor,
    settings: Settings,
    together: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures of estimates, cropped like ``like``, RGB in [0, 1], fp32; with each what
    :func:`_check_finite` wants to know. So many at a time are decoded as one batch."""
    for first in range(0, len(estimates), together):
        group = estimates[first : first + together]
        with stage("decode"):
            latents = group[0] if len(group) == 1 else torch.cat(list(group))
            known = (
                None if condition is None else condition.expand(len(group), *condition.shape[1:])
            )
            drafts = [index > 0 for index in range(first, first + len(group))]
            decoded = codec.decode(latents, known, drafts)
            pictures = [_unit(one.transpose(0, 1), like, settings) for one in decoded]
            del decoded
        while pictures:
            yield pictures.pop(0)


def _unit(decoded: Tensor, like: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """A decoded picture in [-1, 1] as it is meant to be seen, and its bounds."""
    own = decoded.dtype != torch.float32  # then the conversion makes a copy, which may be changed
    wide = crop_clip(decoded, like).to(torch.float32, memory_format=torch.contiguous_format)
    bounds = torch.stack(wide.aminmax())  # clamping would hide infinities
    unit = wide.clamp_(-1, 1) if own else wide.clamp(-1, 1)
    unit.add_(1).div_(2)
    if settings.released_rounding:
        unit.mul_(255).floor_().div_(255)
    return unit, bounds


def _update(result: Tensor, sharp: Tensor, settings: Settings, execution: Execution) -> Tensor:
    """The frequency-domain update; every frame is a picture of its own."""
    if settings.frequency_update.filter == "none":
        return sharp
    if execution.frames is None:
        return update_frequencies(result, sharp, settings.frequency_update)
    for part in execution.slices(len(result)):
        result[part] = update_frequencies(result[part], sharp[part], settings.frequency_update)
    return result


def _check_finite(bounds: list[Tensor], result: Tensor) -> None:
    """Raise NotFinite if a decoded picture held NaN or infinity.

    Args:
        bounds: the lowest and the highest value of each, ``[2]``.
        result: what was made of them, where NaN still shows.
    """
    found = torch.stack(bounds)
    if found.is_meta or bool(found.isfinite().all()):  # the only wait for the device in a window
        return
    marked = result.isnan().flatten(1).any(dim=1)
    broken = marked.nonzero().flatten().tolist() or range(len(result))  # of infinities none shows
    raise NotFinite("the networks gave NaN or infinity", tuple(broken))


def _batched(picture: Tensor) -> Tensor:
    return picture.transpose(0, 1)[None]
