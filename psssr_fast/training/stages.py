"""The stages of training: which parameters each one changes, and by which losses."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from psssr_fast.config import Sampling
from psssr_fast.models.dit import Dit
from psssr_fast.sampling import Step, base_step, draft_steps, make_schedule
from psssr_fast.training import losses
from psssr_fast.training.data import Batch
from psssr_fast.training.draws import Draw, derived_seed
from psssr_fast.training.lora import without_lora
from psssr_fast.training.networks import Models, freeze_teacher
from psssr_fast.training.perceptual import open_lpips
from psssr_fast.training.recipe import Recipe

SAMPLING = Sampling()
UNIT_WEIGHT = 0.01  # of keeping the small codec's latents at a mean square of 1


@dataclass
class Result:
    """What an objective makes of a batch.

    Attributes:
        total: what is minimised.
        parts: each loss before its weight, for the log.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass
class Objective:
    """Losses, and the parameters that they move.

    Attributes:
        name: of its optimizer.
        rate: learning rate.
        modules: networks by name, of which the parameters that need a gradient are moved.
        loss: of a batch; objectives of a stage run in their order and share ``made``.
    """

    name: str
    rate: float
    modules: dict[str, nn.Module]
    loss: Callable[["Scene"], Result]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is moved, by network and name."""
        return {
            f"{network}.{name}": parameter
            for network, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }


@dataclass
class Scene:
    """One batch in one step.

    Attributes:
        batch: the clips.
        seed: of the noise of this step; every sample has its own, so that it does not matter which
            process has it.
        made: what earlier objectives leave for later ones.
    """

    batch: Batch
    seed: int
    made: dict[str, Tensor] = field(default_factory=dict)

    def draws(self, salt: int) -> list[Draw]:
        """A stream for each sample; another ``salt``, other streams."""
        return [Draw(derived_seed(self.seed, salt, index)) for index in self.batch.indices]

    def noise(self, like: Tensor, salt: int) -> Tensor:
        """Standard normal, shaped like ``like``."""
        return torch.stack([draw.normal(like.shape[1:]) for draw in self.draws(salt)]).to(like)

    def timesteps(self, low_high: tuple[int, int], salt: int) -> Tensor:
        """One for each sample, fp32."""
        values = [float(draw.integer(*low_high)) for draw in self.draws(salt)]
        return torch.tensor(values, device=self.batch.high.device)


@dataclass
class Stage:
    """A stage that is ready to run.

    Attributes:
        name: of it.
        objectives: the first one's parameters are what the stage is for.
        falling: the losses that must fall if it learns.
    """

    name: str
    objectives: tuple[Objective, ...]
    falling: tuple[str, ...]


def open_stage(name: str, models: Models, recipe: Recipe) -> Stage:
    """Prepare a stage: which parameters need gradients, and what is minimised.

    Raises:
        UsageError: LPIPS is to be minimised and its weights are not named.
        ModelError: LPIPS's weights cannot be used.
    """
    for module in models.modules().values():
        module.requires_grad_(False)
    return _STAGES[name](models, recipe)


def _codec(models: Models, recipe: Recipe) -> Stage:
    codec = models.codec
    models.codec_module.requires_grad_(True)

    def loss(scene: Scene) -> Result:
        latents, _ = codec.encode(scene.batch.high)
        _, condition = codec.encode(scene.batch.low)
        picture = codec.decode(latents, condition)
        reconstruction = (picture - scene.batch.high).abs().mean()
        unit = (latents.square().mean() - 1).square()
        parts = {"reconstruction": reconstruction, "unit": unit}
        return Result(reconstruction + UNIT_WEIGHT * unit, parts)

    objective = Objective("codec", recipe.learning_rate, {"codec": models.codec_module}, loss)
    return Stage("codec", (objective,), ("reconstruction",))


def _teacher(models: Models, recipe: Recipe) -> Stage:
    assert models.teacher is not None
    teacher = models.teacher
    teacher.requires_grad_(True)

    def loss(scene: Scene) -> Result:
        latents = _encode(models, scene.batch)[0]
        timestep = scene.timesteps(recipe.vsd_timesteps, 1)
        noise = scene.noise(latents, 2)
        total = losses.denoising_loss(latents, _denoiser(models, None), noise, timestep)
        return Result(total, {"denoising": total})

    objective = Objective("teacher", recipe.learning_rate, {"teacher": teacher}, loss)
    return Stage("teacher", (objective,), ("denoising",))


def _base(models: Models, recipe: Recipe) -> Stage:
    """Latent space: equation 10, and the two networks that its terms need."""
    _train_base(models)
    weights, critics = recipe.weights, list[Objective]()
    if weights.vsd:
        critics.append(_regulariser(models, recipe))
    if weights.adversarial:
        critics.append(_discriminator(models, recipe))

    def loss(scene: Scene) -> Result:
        high, low, _ = _encode(models, scene.batch)
        estimate = base_estimate(models, low)
        parts = {"l2": nn.functional.mse_loss(estimate, high)}
        total = weights.l2 * parts["l2"]
        if weights.vsd:
            parts["vsd"] = losses.vsd_loss(
                estimate,
                _teacher_denoiser(models, recipe),
                _denoiser(models, models.context),
                scene.noise(estimate, 3),
                scene.timesteps(recipe.vsd_timesteps, 4),
            )
            total = total + weights.vsd * parts["vsd"]
        if weights.adversarial:
            assert models.discriminator is not None
            parts["adversarial"] = losses.adversarial_loss(models.discriminator(estimate))
            total = total + weights.adversarial * parts["adversarial"]
        scene.made |= {"estimate": estimate.detach(), "high": high}
        return Result(total, parts)

    objective = Objective("base", recipe.learning_rate, {"base": models.base}, loss)
    falling = ["l2"] + ["following"] * bool(weights.vsd)
    falling += ["discriminator"] * bool(weights.adversarial)
    return Stage("base", (objective, *critics), tuple(falling))


def _regulariser(models: Models, recipe: Recipe) -> Objective:
    assert models.teacher is not None
    freeze_teacher(models.teacher, recipe.regulariser_rank, recipe.seed)

    def loss(scene: Scene) -> Result:
        made = scene.made["estimate"]
        timestep = scene.timesteps(recipe.vsd_timesteps, 5)
        denoiser = _denoiser(models, models.context)
        total = losses.denoising_loss(made, denoiser, scene.noise(made, 6), timestep)
        return Result(total, {"following": total})

    return Objective("regulariser", recipe.critic_rate, {"teacher": models.teacher}, loss)


def _discriminator(models: Models, recipe: Recipe) -> Objective:
    assert models.discriminator is not None
    judge = models.discriminator.requires_grad_(True)

    def loss(scene: Scene) -> Result:
        real, fake = judge(scene.made["high"]), judge(scene.made["estimate"])
        total = losses.discriminator_loss(real, fake)
        return Result(total, {"discriminator": total})

    return Objective("discriminator", recipe.critic_rate, {"discriminator": judge}, loss)


def _pixel(models: Models, recipe: Recipe) -> Stage:
    """Pixel space: equation 11 on decoded crops, and latents as before."""
    _train_base(models)
    modules: dict[str, nn.Module] = {"base": models.base}
    if models.trains_codec:  # what reads latents may learn to read the base's
        decoder = _decoder(models)
        modules |= {f"codec.{name}": module for name, module in decoder.items()}
        for module in decoder.values():
            module.requires_grad_(True)
    judge = _Pixels(models, recipe)

    def loss(scene: Scene) -> Result:
        high, low, condition = _encode(models, scene.batch)
        estimate = base_estimate(models, low)
        return judge(scene, estimate, condition, nn.functional.mse_loss(estimate, high))

    objective = Objective("pixel", recipe.learning_rate, modules, loss)
    return Stage("pixel", (objective,), judge.falling)


def _draft(models: Models, recipe: Recipe) -> Stage:
    """Equation 12, on the draft's own trajectory: every step's estimate, the last one's pixels."""
    if models.draft is None:
        models.make_draft()
    assert models.draft is not None
    models.draft.requires_grad_(True)
    judge = _Pixels(models, recipe)

    def loss(scene: Scene) -> Result:
        high, low, condition = _encode(models, scene.batch)
        estimates = [step.estimate for step in draft_rollout(models, low)]
        l2 = torch.stack([nn.functional.mse_loss(x, high) for x in estimates]).mean()
        return judge(scene, estimates[-1], condition, l2)

    objective = Objective("draft", recipe.learning_rate, {"draft": models.draft}, loss)
    return Stage("draft", (objective,), judge.falling)


_STAGES = {
    "codec": _codec, "teacher": _teacher, "base": _base, "pixel": _pixel, "draft": _draft,
}  # fmt: skip


class _Pixels:
    """L2 of latents plus the pixel losses of a random crop of them."""

    def __init__(self, models: Models, recipe: Recipe) -> None:
        self.models, self.recipe = models, recipe
        self.falling: tuple[str, ...] = ("l2", "pixel") if recipe.weights.pixel else ("l2",)
        self.lpips = open_lpips(recipe, next(models.base.parameters()).device)

    def __call__(
        self, scene: Scene, estimate: Tensor, condition: Tensor | None, l2: Tensor
    ) -> Result:
        weights, parts = self.recipe.weights, {"l2": l2}
        total = weights.l2 * l2
        if weights.pixel or self.lpips is not None:
            picture, truth = self._decoded(scene, estimate, condition)
            parts["pixel"] = losses.pixel_loss(picture, truth)
            total = total + weights.pixel * parts["pixel"]
            if self.lpips is not None:
                parts["lpips"] = losses.perceptual_loss(picture, truth, self.lpips)
                total = total + weights.lpips * parts["lpips"]
        return Result(total, parts)

    def _decoded(
        self, scene: Scene, estimate: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """A crop of every clip, decoded, and the truth there."""
        codec, high = self.models.codec, scene.batch.high
        side = min(self.recipe.crop_latents, *estimate.shape[-2:])
        frames = min(self.recipe.crop_frames, estimate.shape[2])  # causal: the first ones
        shown = codec.frames_multiple * (frames - 1) + 1
        factor = high.shape[-1] // estimate.shape[-1]
        spots = [
            (draw.integer(0, estimate.shape[-2] - side), draw.integer(0, estimate.shape[-1] - side))
            for draw in scene.draws(7)
        ]
        crop = _crop(estimate[:, :, :frames], spots, side, 1)
        around = None
        if condition is not None:
            finer = condition.shape[-1] // estimate.shape[-1]
            around = _crop(condition[:, :shown], spots, side, finer)
        truth = _crop(high[:, :, :shown], spots, side, factor)
        return codec.decode(crop, around), truth


def _crop(x: Tensor, spots: Sequence[tuple[int, int]], side: int, factor: int) -> Tensor:
    """Squares of ``side * factor`` at ``spots * factor``, one for each sample."""
    size = side * factor
    return torch.stack(
        [
            sample[..., y * factor : y * factor + size, left * factor : left * factor + size]
            for sample, (y, left) in zip(x, spots, strict=True)
        ]
    )


def _train_base(models: Models) -> None:
    names = dict(models.base.named_parameters())
    adapted = any(".lora_" in name for name in names)
    for name, parameter in names.items():
        whole = name.startswith(("patch_embedding.", "head.head."))
        parameter.requires_grad_(not adapted or whole or ".lora_" in name)


def _decoder(models: Models) -> dict[str, nn.Module]:
    """The modules of the small codec that only its decoder uses."""
    children = dict(models.codec_module.named_children())
    reading = {"read", "encoder", "to_latents"}
    return {name: module for name, module in children.items() if name not in reading}


def _encode(models: Models, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """High- and low-resolution latents, and what the decoder wants to know of the input."""
    with torch.no_grad():
        high, _ = models.codec.encode(batch.high)
        low, condition = models.codec.encode(batch.low)
    return high.float(), low.float(), condition


def _context(models: Models, batch: int) -> Tensor | None:
    return None if models.context is None else models.context.expand(batch, -1, -1)


def base_estimate(models: Models, low: Tensor) -> Tensor:
    """The base's estimate of the high-resolution latents."""
    step, _ = base_step(models.base, low, _context(models, len(low)), make_schedule(SAMPLING))
    return step.estimate


def draft_rollout(models: Models, low: Tensor) -> list[Step]:
    """All steps of the draft after a fixed base's."""
    assert models.draft is not None
    schedule, context = make_schedule(SAMPLING), _context(models, len(low))
    with torch.no_grad():
        first, features = base_step(models.base, low, context, schedule)
    return draft_steps(models.draft, first.next_latents, low, features, context, schedule, SAMPLING)


def _denoiser(models: Models, context: Tensor | None) -> losses.Denoiser:
    """The teacher's network as it is: with adapters if it has some."""
    teacher = models.teacher
    assert isinstance(teacher, Dit)

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        words = None if context is None else context.expand(len(latents), -1, -1)
        return teacher(latents, timestep, words).velocity

    return velocity


def _teacher_denoiser(models: Models, recipe: Recipe) -> losses.Denoiser:
    """The teacher without adapters, guided if the recipe says so."""
    positive = _denoiser(models, models.context)

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        assert models.teacher is not None
        with without_lora(models.teacher):
            towards = positive(latents, timestep)
            if recipe.guidance == 1 or models.negative is None:
                return towards
            away = _denoiser(models, models.negative)(latents, timestep)
            return away + recipe.guidance * (towards - away)

    return velocity


def stages_of(recipe: Recipe, models: Models, asked: Iterable[str]) -> list[str]:
    """The stages that are asked for and have something to do, in their order."""
    wanted = set(asked)
    names = [name for name in _STAGES if name in wanted and recipe.steps_of(name)]
    if not models.trains_codec:
        names = [name for name in names if name not in ("codec", "teacher")]
    if models.teacher is None:
        names = [name for name in names if name != "teacher"]
    return names
