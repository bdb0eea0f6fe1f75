"""Train the embedded model: ``python -m psssr_fast.training.nano --data FOLDER -o FILE``.

Three stages, after the paper's recipe at a size for two CPU cores:

1. codec: reconstruct the picture from its latents, or the input's, and the resized input;
2. base: one step from the input's latents to the high-resolution ones, together with the codec;
3. decoder: the draft's three steps, on its own trajectory and the frozen base's features, and the
   decoder, which draws both the base's picture and the draft's;
4. draft: the draft alone, with everything else frozen.

Losses: L2 on latents, L1 on pixels. The draft's picture is judged where it is used, behind the
frequency-domain update, and there also by LPIPS-VGG, the more the later the step.
"""

import argparse
import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from psssr_fast.checkpoint import load_checkpoint, save_bundle
from psssr_fast.config import FrequencyUpdate, Sampling
from psssr_fast.metrics.lpips import Lpips
from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import NANO, CodecSize
from psssr_fast.ops.frequency_update import luma_change
from psssr_fast.sampling import base_step, draft_steps, make_schedule
from psssr_fast.training.clips import Batch, HeldOut, Material, Sampler, load_material

EMA = 0.999
SAMPLING = Sampling()
SCHEDULE = make_schedule(SAMPLING)


@dataclass(frozen=True)
class Recipe:
    """Length and size of the training; learning rates fall along a cosine.

    Attributes:
        codec_steps, base_steps, decoder_steps, draft_steps: iterations of each stage.
        codec_batch: single frames in a batch of the first stage.
        clip_batch, clip_frames: clips in a batch, and frames in a clip, of the others.
        crop: side of a clip in pixels.
        codec_rate, base_rate, decoder_rate, draft_rate: learning rate at the start of each stage,
            after a warm-up of 50 iterations.
        judged_frames: frames of a batch that LPIPS looks at.
        decoder_perceptual, draft_perceptual: weight of LPIPS in the last two stages, at the last
            draft step; the others get 1/3 and 2/3 of it.
        shift: of the draft's first estimate, up and down in neighbouring channels, so that the
            decoder can tell it from the base's.
        seed: of sampling and initialisation.
    """

    codec_steps: int = 3000
    base_steps: int = 1100
    decoder_steps: int = 600
    draft_steps: int = 600
    codec_batch: int = 16
    clip_batch: int = 4
    clip_frames: int = 4
    crop: int = 128
    codec_rate: float = 5e-4
    base_rate: float = 4e-4
    decoder_rate: float = 6e-4
    draft_rate: float = 8e-4
    judged_frames: int = 4
    decoder_perceptual: float = 1.0
    draft_perceptual: float = 2.0
    shift: float = 0.8
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

    def draft_from_base(self, shift: float = 0.0) -> None:
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
        signs = torch.tensor([1.0, -1.0]).repeat(NANO.dit.out_channels // 2)
        with torch.no_grad():
            bias = self.draft.head.head.bias
            bias.add_(shift * signs.repeat(len(bias) // len(signs)))


Loss = Callable[[Model, Batch], Tensor]


def _l1(picture: Tensor, truth: Tensor) -> Tensor:
    return (picture - truth).abs().mean()


def codec_loss(model: Model, batch: Batch) -> Tensor:
    """Pixels from the input's latents, and from the true ones, which are kept at variance 1."""
    target, _ = model.codec.encode(batch.high)
    latents, condition = model.codec.encode(batch.low)
    informed = model.codec.decode(target, condition)
    plain = model.codec.decode(latents, condition)
    unit = (target.square().mean() - 1).square()
    return _l1(plain, batch.high) + 0.5 * _l1(informed, batch.high) + 0.01 * unit


class BaseLoss:
    """Pixels and latents of the base's estimate; in every second batch the codec's task as well.

    Without that the latents would come to mean something else than a high-resolution picture.
    """

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def __call__(self, model: Model, batch: Batch) -> Tensor:
        latents, condition = model.codec.encode(batch.low)
        step, _ = base_step(model.base, latents, None, SCHEDULE)
        first = _l1(model.codec.decode(step.estimate, condition), batch.high)
        with torch.set_grad_enabled(informed := self._draw.random() < 0.5):
            target, _ = model.codec.encode(batch.high)
        matched = (step.estimate - target.detach()).square().mean()
        if not informed:
            return first + 0.02 * matched
        unit = (target.square().mean() - 1).square()
        known = _l1(model.codec.decode(target, condition), batch.high)
        return first + 0.02 * matched + 0.6 * known + 0.02 * unit


class DraftLoss:
    """One of the draft's steps behind the frequency-domain update, and the base's picture.

    Args:
        judge: LPIPS-VGG.
        perceptual: its weight at the last step.
        frames: that it judges of a batch.
        seed: of the choice of steps and frames.
    """

    def __init__(self, judge: nn.Module, perceptual: float, frames: int, seed: int = 0) -> None:
        self._judge = judge
        self._perceptual = perceptual
        self._frames = frames
        self._draw = random.Random(seed)
        self._update = FrequencyUpdate()

    def __call__(self, model: Model, batch: Batch) -> Tensor:
        codec = model.codec
        with torch.no_grad():
            target, _ = codec.encode(batch.high)
            latents, condition = codec.encode(batch.low)
            first, features = base_step(model.base, latents, None, SCHEDULE)
        steps = draft_steps(
            model.draft, first.next_latents, latents, features, None, SCHEDULE, SAMPLING
        )
        index = self._draw.choices((0, 1, 2), (1, 1, 2))[0]
        base = codec.decode(first.estimate, condition).float()
        sharp = codec.decode(steps[index].estimate, condition).float()
        result, truth = self._updated(base.detach(), sharp), batch.high
        matched = torch.stack([(step.estimate - target).square().mean() for step in steps]).mean()
        loss = _l1(base, truth) + 0.5 * _l1(result, truth) + 0.1 * _l1(sharp, truth)
        loss = loss + 0.02 * matched + 0.25 * _l1(result.diff(dim=2), truth.diff(dim=2))
        weight = self._perceptual * (index + 1) / len(steps)
        return loss + weight * self._perceived(result, truth)

    def _updated(self, base: Tensor, sharp: Tensor) -> Tensor:
        """The base's picture with the draft's detail, in [-1, 1]; differentiable."""
        with torch.autocast("cpu", enabled=False):
            unit = [(p.transpose(1, 2).flatten(0, 1) + 1) / 2 for p in (base, sharp)]
            change = luma_change(unit[0], unit[1], self._update)
            return base + 2 * change.unflatten(0, (len(base), -1))[:, None]

    def _perceived(self, result: Tensor, truth: Tensor) -> Tensor:
        frames = [(p.transpose(1, 2).flatten(0, 1) + 1) / 2 for p in (result, truth)]
        chosen = self._draw.sample(range(len(frames[0])), self._frames)
        return self._judge(frames[0][chosen], frames[1][chosen]).mean()


def train(
    name: str,
    parameters: list[nn.Parameter],
    loss_of: Callable[[], Tensor],
    steps: int,
    rate: float,
) -> list[float]:
    """Minimise ``loss_of()`` in bf16 with fp32 weights; returns every loss.

    The parameters end as a moving average of what they were.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0)
    average, losses = [p.detach().clone() for p in parameters], list[float]()
    for step in range(steps):
        falling = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50) * falling
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        kept = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, list(parameters), 1 - kept)
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            recent = sum(losses[-50:]) / 50
            print(f"{name}: {step + 1} of {steps}, loss {recent:.5f}", flush=True)
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)
    return losses


def run(
    material: Material, recipe: Recipe, judge: nn.Module, output: Path, start: Path | None = None
) -> Model:
    """All stages; with the weights in ``start`` for the codec, the first is left out.

    The result is written after each stage.
    """
    torch.manual_seed(recipe.seed)
    model, codec = fresh_model(start)
    sampler = Sampler(material, recipe.seed + 1)

    def stage(name: str, modules: list[nn.Module], loss: Loss, clips: bool = True) -> None:
        for network in (model.base, model.draft, codec):
            network.requires_grad_(False)
        parameters = [p for module in modules for p in module.requires_grad_(True).parameters()]
        shape = (recipe.clip_batch, recipe.clip_frames) if clips else (recipe.codec_batch, 1)
        steps, rate = getattr(recipe, f"{name}_steps"), getattr(recipe, f"{name}_rate")
        train(
            name, parameters, lambda: loss(model, sampler.batch(*shape, recipe.crop)), steps, rate
        )
        save(model, recipe, output)

    def judged(perceptual: float) -> DraftLoss:
        return DraftLoss(judge, perceptual, recipe.judged_frames, recipe.seed)

    if start is None:
        stage("codec", [codec], codec_loss, clips=False)
    stage("base", [model.base, codec], BaseLoss(recipe.seed))
    model.draft_from_base(recipe.shift)
    decoder: list[nn.Module] = [codec.from_latents, codec.decoder, codec.draw]
    stage("decoder", [model.draft, *decoder], judged(recipe.decoder_perceptual))
    stage("draft", [model.draft], judged(recipe.draft_perceptual))
    return model


def fresh_model(start: Path | None) -> tuple[Model, NanoCodec]:
    """A new model, with the codec of ``start`` if given."""
    model = Model.fresh()
    if start is not None:
        model.codec.load_state_dict(load_checkpoint(start).codec)
    return model, model.codec


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
    parser.add_argument("--lpips", type=Path, required=True, help="weights of LPIPS-VGG, or folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="weights to write")
    parser.add_argument("--start", type=Path, help="weights whose codec to begin with")
    parser.add_argument("--shorter", type=float, default=1.0, help="divide all iterations by this")
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
    lengths = ("codec_steps", "base_steps", "decoder_steps", "draft_steps")
    recipe = replace(
        defaults, **{n: max(1, round(getattr(defaults, n) / arguments.shorter)) for n in lengths}
    )
    judge = Lpips("vgg", weights=arguments.lpips)
    material = load_material(arguments.data, rules)
    run(material, recipe, judge, arguments.output, arguments.start)


if __name__ == "__main__":
    main()
