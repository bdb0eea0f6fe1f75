"""LPIPS as a loss: loaded from the file that the recipe names, or without numbers."""

from collections.abc import Iterable

import torch
from torch import nn

from psssr_fast.errors import UsageError
from psssr_fast.metrics.lpips import Lpips
from psssr_fast.metrics.trunk import TRUNKS, Trunk
from psssr_fast.training.recipe import Recipe


class LpipsWithoutNumbers(Lpips):
    """LPIPS-VGG on the meta device, to find out what it takes."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.net = "vgg"
        shape = TRUNKS[self.net]
        with torch.device("meta"):
            self.trunk = Trunk(shape)
            for index, stage in enumerate(shape.stages):
                self.add_module(f"lin{index}", nn.Conv2d(stage[-1], 1, 1, bias=False))
            for name in ("shift", "scale"):
                self.register_buffer(name, torch.empty(3, 1, 1), persistent=False)
        self.requires_grad_(False)


def open_lpips(recipe: Recipe, device: torch.device) -> Lpips | None:
    """The network of the perceptual loss, if the recipe has one.

    Raises:
        UsageError: its weights are not named.
        ModelError: they cannot be used.
    """
    if not recipe.weights.lpips:
        return None
    if device.type == "meta":
        return LpipsWithoutNumbers()
    if recipe.lpips is None:
        raise UsageError(
            "the pixel loss needs LPIPS-VGG's weights: name them with --lpips FILE, or "
            'leave the loss out with "weights": {"lpips": 0} in the recipe'
        )
    return Lpips("vgg", weights=recipe.lpips).to(device)


def check_lpips(recipe: Recipe, stages: Iterable[str]) -> None:
    """Find out whether the perceptual loss can be had, if one of these stages wants it.

    Raises:
        UsageError, ModelError: as :func:`open_lpips`.
    """
    wanting = ("draft",) if recipe.lpips_stages == "draft" else ("pixel", "draft")
    if any(stage in wanting for stage in stages):
        open_lpips(recipe, torch.device("cpu"))
