"""The stages of training: which parameters each one changes, and by which losses."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from psssr_fast.config import Sampling
from psssr_fast.models.dit import Dit
from psssr_fast.sampling import Step, base_step, draft_steps, make_schedule
from psssr_fast.training import losses
from psssr_fast.training.data import Batch
from psssr_fast.training.lora import without_lora
from psssr_fast.training.networks import Models, freeze_teacher
from psssr_fast.training.pixels import Pixels, updated
from psssr_fast.training.recipe import Recipe
from psssr_fast.training.scene import Result, Scene

SAMPLING = Sampling()
UNIT_WEIGHT = 0.01  # of keeping the small codec's latents at a mean square of 1


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
    loss: Callable[[Scene], Result]

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
        low, condition = codec.encode(scene.batch.low)
        reconstruction = (codec.decode(latents, condition) - scene.batch.high).abs().mean()
        enlarged = (codec.decode(low, condition) - scene.batch.high).abs().mean()
        unit = (latents.square().mean() - 1).square()
        parts = {"reconstruction": reconstruction, "enlarged": enlarged, "unit": unit}
        return Result(reconstruction + enlarged + UNIT_WEIGHT * unit, parts)

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
    """Pixel space: equation 11 on decoded crops, and latents as before.

    A codec of ours learns with the base to draw its picture; with a weight of ``known`` all of it,
    and in every second step its own task as well.
    """
    _train_base(models)
    known = recipe.weights.known if models.trains_codec else 0.0
    modules: dict[str, nn.Module] = {"base": models.base}
    if models.trains_codec:
        codec = {"codec": models.codec_module}
        modules |= codec if known else {"codec.drawer": codec["codec"].get_submodule("drawer")}
    for name, module in modules.items():
        if name != "base":
            module.requires_grad_(True)
    judge = Pixels(models, recipe, perceptual=recipe.lpips_stages != "draft")

    def loss(scene: Scene) -> Result:
        informed = bool(known) and scene.draw(10).chance(0.5)
        with torch.set_grad_enabled(informed):
            high, _ = models.codec.encode(scene.batch.high)
        with torch.set_grad_enabled(bool(known)):
            low, condition = models.codec.encode(scene.batch.low)
        estimate = base_estimate(models, low.float())
        l2 = nn.functional.mse_loss(estimate, high.detach().float())
        result = judge(scene, estimate, condition, l2)
        if informed:
            picture = models.codec.decode(high, condition)
            result.total = result.total + UNIT_WEIGHT * (high.square().mean() - 1).square()
            told = losses.pixel_loss(picture, scene.batch.high, recipe.pixel_norm)
            result.total = result.total + known * told
        return result

    objective = Objective("pixel", recipe.learning_rate, modules, loss)
    return Stage("pixel", (objective,), judge.falling)


def _draft(models: Models, recipe: Recipe) -> Stage:
    """Equation 12, on the draft's own trajectory: every step's estimate, one step's pixels."""
    if models.draft is None:
        models.make_draft()
    assert models.draft is not None
    modules: dict[str, nn.Module] = {"draft": models.draft}
    if models.trains_codec:
        modules["codec.draft_drawer"] = models.codec_module.get_submodule("draft_drawer")
    for module in modules.values():
        module.requires_grad_(True)
    judge = Pixels(models, recipe, perceptual=True)

    def loss(scene: Scene) -> Result:
        high, low, condition = _encode(models, scene.batch)
        first, steps = draft_rollout(models, low)
        matched = [nn.functional.mse_loss(step.estimate, high) for step in steps]
        l2 = torch.stack(matched).mean()
        if recipe.draft_pixels == "updated":
            return judge.updated(scene, first, steps, condition, l2)
        return judge(scene, steps[-1].estimate, condition, l2, draft=True)

    objective = Objective("draft", recipe.learning_rate, modules, loss)
    return Stage("draft", (objective,), judge.falling)


_STAGES = {
    "codec": _codec, "teacher": _teacher, "base": _base, "pixel": _pixel, "draft": _draft,
}  # fmt: skip


def _train_base(models: Models) -> None:
    names = dict(models.base.named_parameters())
    adapted = any(".lora_" in name for name in names)
    for name, parameter in names.items():
        whole = name.startswith(("patch_embedding.", "head.head."))
        parameter.requires_grad_(not adapted or whole or ".lora_" in name)


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


def draft_rollout(models: Models, low: Tensor) -> tuple[Step, list[Step]]:
    """A fixed base's step, and all steps of the draft after it."""
    assert models.draft is not None
    schedule, context = make_schedule(SAMPLING), _context(models, len(low))
    with torch.no_grad():
        first, features = base_step(models.base, low, context, schedule)
    latents = first.next_latents
    return first, draft_steps(models.draft, latents, low, features, context, schedule, SAMPLING)


def drawn(models: Models, recipe: Recipe, stage: str, batch: Batch) -> Tensor:
    """What a stage has learnt so far: the pictures of a batch, fp32."""
    codec = models.codec
    low, condition = codec.encode(batch.low)
    if stage == "draft":
        first, steps = draft_rollout(models, low.float())
        sharp = codec.decode(steps[-1].estimate, condition, [True] * len(low)).float()
        own = recipe.draft_pixels == "own"
        return sharp if own else updated(codec.decode(first.estimate, condition), sharp)
    codecs = stage == "codec"
    latents = codec.encode(batch.high)[0] if codecs else base_estimate(models, low.float())
    return codec.decode(latents, condition).float()


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
