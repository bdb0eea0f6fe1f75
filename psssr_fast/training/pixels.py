"""Losses of decoded pictures, after those of latents (paper, equations 11 and 12)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.ops.frequency_update import luma_change
from psssr_fast.sampling import Step
from psssr_fast.training import losses
from psssr_fast.training.networks import Models
from psssr_fast.training.perceptual import open_lpips
from psssr_fast.training.recipe import Recipe
from psssr_fast.training.scene import Result, Scene

UPDATE = FrequencyUpdate()
LATER = (1, 1, 2)  # how often each draft step is judged where one of them is
OWN_WEIGHT = 0.2  # of the draft's picture before the update, which must stay a picture


class Pixels:
    """L2 of latents plus the losses of a random crop of every clip, decoded.

    Args:
        models: of the run.
        recipe: its weights and crops.
        perceptual: whether LPIPS is one of the losses.

    Raises:
        UsageError: it is, and its weights are not named.
        ModelError: these cannot be used.
    """

    def __init__(self, models: Models, recipe: Recipe, *, perceptual: bool) -> None:
        self.models, self.recipe = models, recipe
        self.falling: tuple[str, ...] = ("l2", "pixel") if recipe.weights.pixel else ("l2",)
        device = next(models.base.parameters()).device
        self.lpips = open_lpips(recipe, device) if perceptual else None

    def __call__(
        self,
        scene: Scene,
        estimate: Tensor,
        condition: Tensor | None,
        l2: Tensor,
        *,
        draft: bool = False,
    ) -> Result:
        """The losses of one estimate, and of ``l2``, which was computed before."""
        found = Result(self.recipe.weights.l2 * l2, {"l2": l2})
        if self._looks:
            (picture,), truth = self._decoded(scene, [estimate], condition, [draft])
            self._judge(found, scene, picture, truth)
        return found

    def updated(
        self, scene: Scene, first: Step, steps: Sequence[Step], condition: Tensor | None, l2: Tensor
    ) -> Result:
        """As above, of one of the draft's steps, behind the frequency-domain update of the base's
        picture: where it is seen. LPIPS counts the more the later the step."""
        found, weights = Result(self.recipe.weights.l2 * l2, {"l2": l2}), self.recipe.weights
        if self._looks:
            index = scene.draw(8).pick(LATER[: len(steps)])
            estimates = [first.estimate, steps[index].estimate]
            (base, sharp), truth = self._decoded(scene, estimates, condition, [False, True])
            own = self._distance(sharp, truth)
            found.total = found.total + OWN_WEIGHT * weights.pixel * own
            result = updated(base.detach(), sharp)
            self._judge(found, scene, result, truth, ((index + 1) / len(steps)) ** 2)
        return found

    @property
    def _looks(self) -> bool:
        weights = self.recipe.weights
        return bool(weights.pixel or weights.temporal or self.lpips is not None)

    def _judge(
        self, found: Result, scene: Scene, picture: Tensor, truth: Tensor, share: float = 1.0
    ) -> None:
        weights, parts = self.recipe.weights, {"pixel": self._distance(picture, truth)}
        found.total = found.total + weights.pixel * parts["pixel"]
        if weights.temporal and picture.shape[2] > 1:
            parts["temporal"] = self._distance(picture.diff(dim=2), truth.diff(dim=2))
            found.total = found.total + weights.temporal * parts["temporal"]
        if self.lpips is not None:
            count = self.recipe.lpips_frames
            seen, true = _some_frames(picture, count, scene), _some_frames(truth, count, scene)
            parts["lpips"] = losses.perceptual_loss(seen, true, self.lpips)
            found.total = found.total + share * weights.lpips * parts["lpips"]
        found.parts |= parts

    def _distance(self, picture: Tensor, truth: Tensor) -> Tensor:
        return losses.pixel_loss(picture, truth, self.recipe.pixel_norm)

    def _decoded(
        self,
        scene: Scene,
        estimates: Sequence[Tensor],
        condition: Tensor | None,
        drafts: Sequence[bool],
    ) -> tuple[list[Tensor], Tensor]:
        """A crop of every clip, decoded from each estimate, and the truth there."""
        codec, high, like = self.models.codec, scene.batch.high, estimates[0]
        side = min(self.recipe.crop_latents, *like.shape[-2:])
        frames = min(self.recipe.crop_frames, like.shape[2])  # causal: the first ones
        shown = codec.frames_multiple * (frames - 1) + 1
        factor = high.shape[-1] // like.shape[-1]
        spots = [
            (draw.integer(0, like.shape[-2] - side), draw.integer(0, like.shape[-1] - side))
            for draw in scene.draws(7)
        ]
        around = None
        if condition is not None:
            finer = condition.shape[-1] // like.shape[-1]
            around = _crop(condition[:, :shown], spots, side, finer)
        pictures = []
        for estimate, draft in zip(estimates, drafts, strict=True):
            crop = _crop(estimate[:, :, :frames], spots, side, 1)
            pictures.append(codec.decode(crop, around, [draft] * len(crop)))
        return pictures, _crop(high[:, :, :shown], spots, side, factor)


def updated(base: Tensor, sharp: Tensor) -> Tensor:
    """The base's picture with the draft's detail, as the pipeline has it; differentiable, in fp32.

    Args:
        base, sharp: ``[batch, 3, frames, H, W]``, not clamped.

    Returns:
        The same shape, in [-1, 1] but for what the update adds.
    """
    kind = "cpu" if base.is_meta else base.device.type  # autocast knows no meta device
    with torch.autocast(kind, enabled=False):
        base, sharp = (x.float().clamp(-1, 1) for x in (base, sharp))
        soft, fine = (x.transpose(1, 2).flatten(0, 1).add(1).div(2) for x in (base, sharp))
        change = luma_change(soft, fine, UPDATE)
        return base + 2 * change.unflatten(0, (len(base), -1))[:, None]


def _some_frames(clips: Tensor, count: int, scene: Scene) -> Tensor:
    """So many frames of all clips, as clips of one frame; as they are if 0."""
    frames = clips.transpose(1, 2).flatten(0, 1)[:, :, None]
    if not 0 < count < len(frames):
        return clips
    draw, left = scene.draw(9), list(range(len(frames)))
    return frames[[left.pop(draw.integer(0, len(left) - 1)) for _ in range(count)]]


def _crop(x: Tensor, spots: Sequence[tuple[int, int]], side: int, factor: int) -> Tensor:
    """Squares of ``side * factor`` at ``spots * factor``, one for each sample."""
    size = side * factor
    return torch.stack(
        [
            sample[..., y * factor : y * factor + size, left * factor : left * factor + size]
            for sample, (y, left) in zip(x, spots, strict=True)
        ]
    )
