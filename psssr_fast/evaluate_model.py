"""How good a model is: a truth is degraded, restored step by step, and compared."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from psssr_fast.config import FrequencyUpdate, Profile, Settings, settings_for
from psssr_fast.errors import InputError
from psssr_fast.evaluate import (
    BICUBIC,
    Evaluation,
    Evaluator,
    Note,
    Options,
    enlarged,
    to_unit,
)
from psssr_fast.evaluate_sources import Pixels, open_pictures
from psssr_fast.loading import load_networks, resolve_device
from psssr_fast.training.degradation import degrade
from psssr_fast.upscaler import Upscaler

SCALE = 4
BASE, FULL, WITHOUT_UPDATE = "base", "full", "no FDU"
_BY_FRAME = ("bicubic", "bd")  # these degrade each frame by itself


@dataclass(frozen=True)
class Trial:
    """What is done to the truth before the model gets it, and with which model.

    Attributes:
        model: as for ``psssr upscale``.
        degradation: by name; see :mod:`psssr_fast.training.degradation`.
        seed: decides every draw of the degradation.
        steps: measure the result after each draft step too, and without the frequency-domain
            update.
        profile: how to sample.
        alpha: strength of the update; ``None`` for the profile's.
        device, dtype: as for :meth:`Upscaler.from_pretrained`.
        offline: never touch the network.
    """

    model: str = "nano"
    degradation: str = "bicubic"
    seed: int = 0
    steps: bool = False
    profile: Profile = Profile.RELEASED
    alpha: float | None = None
    device: str = "auto"
    dtype: torch.dtype | None = None
    offline: bool = False


def evaluate_model(
    reference: Path, trial: Trial, options: Options, note: Note | None = None
) -> Evaluation:
    """Degrade a truth by 4, restore it, and measure bicubic, base alone and all steps beside it.

    The truth and its degraded version are held in memory as 8 bits, so a long video wants a span;
    its sides are cut to multiples of 4 at the right and bottom.

    Args:
        reference: the truth: a video or a folder of pictures.
        trial: degradation and model.
        options: what to measure.
        note: called with the number of frames done.

    Raises:
        InputError, UsageError, ModelError: see :class:`Evaluator` and
            :meth:`Upscaler.from_pretrained`.
    """
    truth = read_truth(reference, options)
    low = degraded(truth, trial.degradation, trial.seed)
    size = (truth.shape[1], truth.shape[2])
    upscalers = variants(trial)
    evaluator = Evaluator((BICUBIC, *upscalers), ("truth", "input", "base"), size, options)
    with ExitStack() as stack:
        streams: dict[str, Iterator[Pixels]] = {
            name: stack.enter_context(closing(upscaler.stream(low)))
            for name, upscaler in upscalers.items()
        }
        for sharp, small in zip(truth, low, strict=True):
            results = {name: to_unit(next(stream)) for name, stream in streams.items()}
            given = {"truth": to_unit(sharp), "input": to_unit(small), "base": results[BASE]}
            evaluator.add({BICUBIC: to_unit(enlarged(small, size)), **results}, given)
            if note is not None:
                note(evaluator.frames)
    return evaluator.finish(_facts(trial, upscalers))


def read_truth(reference: Path, options: Options) -> NDArray[np.uint8]:
    """The truth, ``[frames, height, width, 3]``, its sides multiples of 4.

    Raises:
        InputError: it cannot be read, has no frame in the span, or is too small.
    """
    source = open_pictures(reference, options.span)
    height, width = (edge // SCALE * SCALE for edge in (source.height, source.width))
    if not height * width:
        raise InputError(f"{reference}: {source.width}x{source.height} is too small to shrink by 4")
    frames = [frame[:height, :width] for frame in source.frames()]
    if not frames:
        raise InputError(f"{reference}: there are no frames to measure; see --frames")
    return np.stack(frames)


def degraded(truth: NDArray[np.uint8], name: str, seed: int) -> NDArray[np.uint8]:
    """The truth four times smaller and worse, uint8 ``[frames, height, width, 3]``.

    Raises:
        UsageError: there is no such degradation.
    """
    parts = np.split(truth, len(truth)) if name in _BY_FRAME else [truth]
    done = []
    for part in parts:
        clip = torch.from_numpy(part).permute(3, 0, 1, 2)[None].float().div(127.5).sub(1)
        low = degrade(clip, name, seed, SCALE)[0].permute(1, 2, 3, 0)
        done.append(low.add(1).mul(127.5).round().clamp(0, 255).byte().numpy())
    return np.concatenate(done)


def variants(trial: Trial) -> dict[str, Upscaler]:
    """The model with fewer steps, by name; all steps are the last but for the ablation.

    Raises:
        ModelError, UsageError: see :func:`load_networks`.
    """
    loaded = load_networks(
        trial.model, resolve_device(trial.device), trial.dtype, offline=trial.offline
    )
    full = settings_for(trial.profile, loaded.size.windows)
    if trial.alpha is not None:
        full = replace(full, frequency_update=replace(full.frequency_update, strength=trial.alpha))
    steps = len(full.sampling.timesteps) if trial.steps else 2
    chosen = {_name(count): _first(full, count) for count in range(1, steps)}
    chosen[FULL] = full
    if trial.steps:
        update = replace(full.frequency_update, filter="none")
        chosen[WITHOUT_UPDATE] = replace(full, frequency_update=update)
    return {
        name: Upscaler(loaded.networks, settings, loaded.name, loaded.attention, "fused")
        for name, settings in chosen.items()
    }


def _name(count: int) -> str:
    return BASE if count == 1 else f"base+{count - 1}"


def _first(settings: Settings, count: int) -> Settings:
    """The same with only the first steps: what they give does not depend on the later ones."""
    timesteps = settings.sampling.timesteps[:count]
    return replace(settings, sampling=replace(settings.sampling, timesteps=timesteps))


def _facts(trial: Trial, upscalers: Mapping[str, Upscaler]) -> dict[str, str | int]:
    full = upscalers[FULL]
    update: FrequencyUpdate = full.settings.frequency_update
    return {
        "model": full.model,
        "profile": str(full.settings.profile),
        "alpha": str(update.strength),
        "degradation": trial.degradation,
        "seed": trial.seed,
        "dtype": str(full.networks.dtype).removeprefix("torch."),
        "device": str(full.networks.device),
    }
