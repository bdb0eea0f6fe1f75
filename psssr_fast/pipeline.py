"""One window of video through the networks; everything above it only cuts, blends and stores."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from psssr_fast.config import Settings
from psssr_fast.errors import OutOfMemory
from psssr_fast.models.codec import Codec
from psssr_fast.ops.frequency_update import update_frequencies
from psssr_fast.runtime.graphs import GraphCache
from psssr_fast.runtime.ranges import stage
from psssr_fast.sampling import Transformer, base_step, draft_steps, make_schedule
from psssr_fast.windows import crop_clip, pad_clip

OUT_OF_MEMORY = ("allocate memory", "out of memory", "alloc_failed")


@dataclass(frozen=True)
class Networks:
    """The networks of a model, on their device and in their dtype, ready to run.

    Attributes:
        base, draft: the transformers.
        codec: between pictures and latents.
        context: the prompt's embedding ``[1, tokens, text_dim]``; ``None`` if the transformers
            know it, or have no use for one.
        graphs: captured steps, for networks that can be captured.
    """

    base: Transformer
    draft: Transformer
    codec: Codec
    context: Tensor | None
    graphs: GraphCache | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return next(self.base.parameters()).device

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


def restore_window(networks: Networks, picture: Tensor, settings: Settings) -> Tensor:
    """Restore one window that already has its output size.

    Args:
        networks: the model.
        picture: ``[frames, 3, height, width]`` in [-1, 1], on the networks' device, fp32.
        settings: sampling and frequency-domain update.

    Returns:
        The restored window, shaped like ``picture``, in [-1, 1], fp32.

    Raises:
        OutOfMemory: the window does not fit.
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
        result = _decode(codec, base, condition, picture, settings)
        for draft in drafts:
            sharp = _decode(codec, draft, condition, picture, settings)
            with stage("update"):
                result = update_frequencies(result, sharp, settings.frequency_update)
        return result.mul_(2).sub_(1).clamp_(-1, 1)


@contextmanager
def memory_guard(frames: int, height: int, width: int, device: torch.device) -> Iterator[None]:
    """Turn torch's ways of running out of memory into :class:`OutOfMemory`, naming the window."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error).lower()  # Triton, cuBLAS and CUDA itself raise plain RuntimeErrors
        if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
            raise OutOfMemory(
                f"out of memory on a window of {frames} frames {width}x{height} on {device}. Use "
                "smaller windows (--window FRAMESxHEIGHTxWIDTH with --overlap FRAMESxPIXELS), a "
                "smaller output, or a machine with more memory"
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
    codec: Codec, estimate: Tensor, condition: Tensor | None, like: Tensor, settings: Settings
) -> Tensor:
    """The picture of an estimate, cropped like ``like``, RGB in [0, 1], fp32."""
    with stage("decode"):
        decoded = codec.decode(estimate, condition)[0].transpose(0, 1)
        unit = crop_clip(decoded, like).float().contiguous().clamp(-1, 1).add(1).div(2)
        if settings.released_rounding:
            return unit.mul(255).floor_().div_(255)
        return unit


def _batched(picture: Tensor) -> Tensor:
    return picture.transpose(0, 1)[None]
