"""Train the embedded model: ``python -m psssr_fast.training.nano --data FOLDER -o FILE``.

Three stages, after the paper's recipe at a size for two CPU cores:

1. codec: reconstruct the high-resolution picture from its latents and the resized input;
2. base: one step from the input's latents to the high-resolution ones, with the decoder;
3. draft: three steps on its own trajectory, on the frozen base's features.

Losses: L2 on latents, L1 on pixels; in the last stage also L1 on the luma's high frequencies, the
only part of the draft's picture that is used.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.checkpoint import load_checkpoint, save_bundle
from psssr_fast.config import Sampling
from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import NANO, CodecSize
from psssr_fast.sampling import base_step, draft_steps, make_schedule
from psssr_fast.training.clips import Degradation, HeldOut, degrade, load_sources, sample_clips


@dataclass(frozen=True)
class Recipe:
    """Length and size of the training; learning rates fall to zero along a cosine.

    Attributes:
        codec_minutes, base_minutes, draft_minutes: wall-clock time of each stage.
        codec_batch: single frames in a batch of the first stage.
        clip_batch, clip_frames: clips in a batch, and frames in a clip, of the others.
        crop: side of a clip in pixels.
        learning_rate: at the start of each stage, after a warm-up of 50 iterations.
        seed: of sampling and initialisation.
    """

    codec_minutes: float = 30.0
    base_minutes: float = 20.0
    draft_minutes: float = 12.0
    codec_batch: int = 16
    clip_batch: int = 4
    clip_frames: int = 4
    crop: int = 128
    learning_rate: float = 5e-4
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """The networks being trained."""

    base: Dit
    draft: Dit
    codec: NanoCodec

    @classmethod
    def fresh(cls) -> "Model":
        """Random base and draft whose heads start at zero: the first velocity is nothing."""
        base, draft = Dit(NANO.dit), Dit(NANO.dit, draft=True)
        nn.init.zeros_(base.head.head.weight)
        nn.init.zeros_(base.head.head.bias)
        assert isinstance(NANO.codec, CodecSize)
        codec = NanoCodec(NANO.codec)
        codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(base, draft, codec)

    def draft_from_base(self) -> None:
        """Prune the base into the draft: its kept blocks and all it has outside of blocks.

        ``fc_layers`` start as the release's do: the base's feature passes, the hidden state
        does not.
        """
        weights = self.base.state_dict()
        for j, i in enumerate(NANO.dit.kept_blocks):
            self.draft.blocks[j].load_state_dict(self.base.blocks[i].state_dict())
            layer = self.draft.fc_layers[j]
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight.zero_()[:, : NANO.dit.dim] = torch.eye(NANO.dit.dim)
                layer.bias.zero_()
        outside = {k: v for k, v in weights.items() if not k.startswith("blocks.")}
        self.draft.load_state_dict(outside, strict=False)


@dataclass(frozen=True)
class Batch:
    """High-resolution clips and the pictures the model gets, ``[batch, 3, frames, H, W]``."""

    high: Tensor
    low: Tensor


Loss = Callable[[Model, Batch], Tensor]


def codec_loss(model: Model, batch: Batch) -> Tensor:
    """Pixels from the true latents, and, so that the decoder can do without, from the input's.

    Half of the clips are decoded without the features of the input: the latents, which are all
    that the transformers see, must then say by themselves what the picture lacks.
    """
    target, _ = model.codec.encode(batch.high)
    latents, condition = model.codec.encode(batch.low)
    kept = torch.rand(len(latents), 1, 1, 1, 1) < 0.5
    features = condition.shape[2] - 48
    condition = torch.cat([condition[:, :, :features] * kept, condition[:, :, features:]], dim=2)
    informed = model.codec.decode(target, condition)
    plain = model.codec.decode(latents, condition)
    unit = 0.01 * (target.square().mean() - 1).square()
    return F.l1_loss(informed, batch.high) + F.l1_loss(plain, batch.high) + unit


def base_loss(model: Model, batch: Batch) -> Tensor:
    """Latents (L2) and pixels (L1) of the base's estimate."""
    with torch.no_grad():
        target, _ = model.codec.encode(batch.high)
        latents, condition = model.codec.encode(batch.low)
    step, _ = base_step(model.base, latents, None, make_schedule(Sampling()))
    picture = model.codec.decode(step.estimate, condition)
    return F.l1_loss(picture, batch.high) + 0.05 * F.mse_loss(step.estimate, target)


def draft_loss(model: Model, batch: Batch) -> Tensor:
    """Latents of every step of the draft's own trajectory, pixels and luma detail of the last."""
    sampling = Sampling()
    schedule = make_schedule(sampling)
    with torch.no_grad():
        target, _ = model.codec.encode(batch.high)
        latents, condition = model.codec.encode(batch.low)
        first, features = base_step(model.base, latents, None, schedule)
    steps = draft_steps(
        model.draft, first.next_latents, latents, features, None, schedule, sampling
    )
    picture = model.codec.decode(steps[-1].estimate, condition)
    matched = torch.stack([F.mse_loss(step.estimate, target) for step in steps]).mean()
    detail = F.l1_loss(_detail(picture), _detail(batch.high))
    return F.l1_loss(picture, batch.high) + detail + 0.05 * matched


def _detail(picture: Tensor) -> Tensor:
    """Luma minus its 5x5 mean: roughly what the frequency-domain update takes from the draft."""
    weights = picture.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)
    luma = (picture * weights).sum(1).flatten(0, 1)[:, None]
    return luma - F.avg_pool2d(luma, 5, stride=1, padding=2, count_include_pad=False)


def train(
    name: str,
    parameters: list[nn.Parameter],
    loss_of: Callable[[], Tensor],
    minutes: float,
    learning_rate: float,
) -> list[float]:
    """Minimise ``loss_of()``, in bf16 with fp32 weights, for ``minutes``; returns every loss."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0)
    begin, losses = time.monotonic(), list[float]()
    while (done := (time.monotonic() - begin) / (60 * minutes)) < 1:
        warm = min(1.0, (len(losses) + 1) / 50)
        falling = 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))
        optimizer.param_groups[0]["lr"] = learning_rate * warm * falling
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) % 50 == 0:
            recent = sum(losses[-50:]) / 50
            print(f"{name}: {done:4.0%} iteration {len(losses)} loss {recent:.5f}", flush=True)
    return losses


def run(sources: list[Tensor], recipe: Recipe, output: Path, start: Path | None = None) -> Model:
    """All three stages, the codec's from the weights in ``start``; written after each."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = Model.fresh()
    if start is not None:
        model.codec.load_state_dict(load_checkpoint(start).codec)

    def batches(count: int, frames: int) -> Iterator[Batch]:
        for high in sample_clips(sources, count, frames, recipe.crop, generator):
            yield Batch(high, degrade(high, Degradation(), generator))

    def stage(
        name: str, modules: list[nn.Module], loss: Loss, data: Iterator[Batch], minutes: float
    ) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        train(name, parameters, lambda: loss(model, next(data)), minutes, recipe.learning_rate)
        save(model, recipe, output)

    frames, clips = batches(recipe.codec_batch, 1), batches(recipe.clip_batch, recipe.clip_frames)
    codec = model.codec
    stage("codec", [codec], codec_loss, frames, recipe.codec_minutes)
    decoder: list[nn.Module] = [codec.from_latents, codec.decoder, codec.draw]
    stage("base", [model.base, *decoder], base_loss, clips, recipe.base_minutes)
    model.draft_from_base()
    stage("draft", [model.draft], draft_loss, clips, recipe.draft_minutes)
    return model


def save(model: Model, recipe: Recipe, output: Path) -> None:
    """Write the bundle that ``Upscaler.from_pretrained`` reads, in fp16."""
    base, draft, codec = (
        {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
        for network in (model.base, model.draft, model.codec)
    )
    save_bundle(output, "nano", base, draft, codec, {"recipe": json.dumps(asdict(recipe))})


def main() -> None:
    """Command line of the module."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photos and videos")
    parser.add_argument("-o", "--output", type=Path, required=True, help="weights to write")
    parser.add_argument("--start", type=Path, help="weights whose codec to begin with")
    parser.add_argument("--minutes", type=float, help="in all, instead of the recipe's 62")
    parser.add_argument(
        "--held-out",
        metavar="NAME=FRAMES",
        action="append",
        default=[],
        help="leave out the last frames of a video; may be given several times",
    )
    arguments = parser.parse_args()
    held_out = [rule.rpartition("=") for rule in arguments.held_out]
    rules = tuple(HeldOut(name, int(frames)) for name, _, frames in held_out)
    scale = 1.0
    if arguments.minutes is not None:
        total = defaults.codec_minutes + defaults.base_minutes + defaults.draft_minutes
        scale = arguments.minutes / total
    recipe = Recipe(
        codec_minutes=defaults.codec_minutes * scale,
        base_minutes=defaults.base_minutes * scale,
        draft_minutes=defaults.draft_minutes * scale,
    )
    run(load_sources(arguments.data, rules), recipe, arguments.output, arguments.start)


if __name__ == "__main__":
    main()
