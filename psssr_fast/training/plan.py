"""What a stage of training will take in memory, found out without weights or a GPU.

One whole optimisation step (encode, forward, backward, AdamW) of every objective runs on the meta
device: every shape and lifetime is real, only the numbers are missing.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.overrides import TorchFunctionMode

from psssr_fast.models.sizes import ModelSize
from psssr_fast.runtime.memory import rehearse, tensor_bytes
from psssr_fast.training.data import Batch
from psssr_fast.training.networks import build, checkpoint_blocks
from psssr_fast.training.recipe import Recipe
from psssr_fast.training.scene import Scene
from psssr_fast.training.stages import Stage, open_stage


@dataclass(frozen=True)
class StageNeed:
    """Bytes that a stage of training takes.

    Attributes:
        stage: its name.
        weights: of all networks in memory, averages of the trained ones included.
        trained: parameters that the stage moves.
        optimizer: AdamW's two moments.
        step: most that lives besides during a step: gradients, activations, optimizer's copies.
    """

    stage: str
    weights: int
    trained: int
    optimizer: int
    step: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.step


class _TrainedAttention(torch.autograd.Function):
    """Memory of a fused attention: keeps its inputs, its result and one number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, tokens, _ = q.shape
        out = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
        log_sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


# What autocast computes in bf16, and in fp32; it does nothing on the meta device.
_HALF = {F.linear, F.conv2d, F.conv3d, torch.matmul}
_WIDE = {F.layer_norm, F.mse_loss}


class _AsOnGpu(TorchFunctionMode):
    """Fused attention, and autocast's casts: copies of trained weights are kept for the step."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half = half
        self.copies: dict[Tensor, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k, v = (self._cast(x, torch.bfloat16) for x in args[:3])
            return _TrainedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        if func in _HALF or func in _WIDE:
            dtype = torch.bfloat16 if func in _HALF else torch.float32
            args = tuple(self._cast(x, dtype) for x in args)
            kwargs = {name: self._cast(x, dtype) for name, x in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def _cast(self, x: Any, dtype: torch.dtype) -> Any:
        if not self.half or not isinstance(x, Tensor) or x.dtype == dtype:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(dtype)
        if x not in self.copies:
            self.copies[x] = x.to(dtype)
        return self.copies[x]


def plan_stage(stage: str, recipe: Recipe, size: ModelSize | None = None) -> StageNeed:
    """Rehearse one optimisation step of a stage.

    Args:
        stage: one of :data:`psssr_fast.training.recipe.STAGES`.
        recipe: of the run; its clips and batch are those of one process.
        size: dimensions, if not those of the recipe's size.
    """
    meta = torch.device("meta")
    models = build(replace(recipe, gradient_checkpointing=False), meta, size)
    if stage == "draft":
        models.make_draft()
    if recipe.gradient_checkpointing:
        half = recipe.precision == "bf16"
        for network in (models.base, models.teacher, models.draft):
            if network is not None:
                # blocks are computed again where the outer mode does not reach
                checkpoint_blocks(network, lambda: (nullcontext(), _AsOnGpu(half)))
    opened = open_stage(stage, models, recipe)
    moved = [list(objective.parameters.values()) for objective in opened.objectives]
    optimizers = [AdamW(parameters, lr=1e-4) for parameters in moved]
    # a first step, so that the moments are there
    for parameters, optimizer in zip(moved, optimizers, strict=True):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peak = rehearse(lambda: _step(opened, optimizers, recipe), torch.device("cuda"))
    weights = [
        parameter for module in models.modules().values() for parameter in module.parameters()
    ]
    moments = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.ndim
    ]
    return StageNeed(
        stage,
        weights=tensor_bytes(weights) + tensor_bytes(moved[0]),
        trained=sum(parameter.numel() for parameters in moved for parameter in parameters),
        optimizer=tensor_bytes(moments),
        step=peak.total,
    )


def _step(stage: Stage, optimizers: list[AdamW], recipe: Recipe) -> None:
    clips = recipe.clips
    shape = (recipe.batch, 3, clips.frames, clips.size, clips.width)
    high, low = torch.empty(shape, device="meta"), torch.empty(shape, device="meta")
    scene = _MetaScene(Batch(high, low, tuple(range(recipe.batch))), 0)
    for objective, optimizer in zip(stage.objectives, optimizers, strict=True):
        with torch.enable_grad(), _AsOnGpu(recipe.precision == "bf16"):
            objective.loss(scene).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class _MetaScene(Scene):
    """Noise and timesteps without numbers."""

    def noise(self, like: Tensor, salt: int) -> Tensor:
        return torch.empty_like(like)

    def timesteps(self, low_high: tuple[int, int], salt: int) -> Tensor:
        return torch.empty(len(self.batch.high), device="meta")
