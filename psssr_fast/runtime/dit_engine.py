"""The transformer of ``models/dit.py`` rebuilt for speed: the same function, rounding apart.

What differs is when and how often things are computed, not what:

- queries, keys and values come from one matrix product; a LoRA was merged when the weights were
  loaded;
- the modulation vectors of the four timesteps, which never change, are tables;
- rotary angles are made once a shape, keys and values of the prompt once a prompt. The prompt's
  zero-padded tail, which the model sees, is many equal keys: a few whose scores are raised by the
  logarithm of what they stand for weigh the same in a softmax;
- ``fc_layers[j]([feature, h])`` is ``W_f feature + b + W_h h``, and the first two terms are the
  same in all draft steps;
- normalisation, modulation, rotation, gate and residual are one kernel each, in ``ops/``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.errors import UsageError
from psssr_fast.models.attention_windows import Layout
from psssr_fast.models.dit import (
    AttentionLayer,
    Block,
    Dit,
    DitOutput,
    rotary_angles,
    timestep_embedding,
    unpatchify,
)
from psssr_fast.ops.feature_project import feature_project
from psssr_fast.ops.gated_add import gated_add
from psssr_fast.ops.norm_modulate import norm_modulate
from psssr_fast.ops.qk_norm_rope import qk_norm_rope
from psssr_fast.ops.window_attention import window_attention

ONEDNN = torch.backends.mkldnn.is_available()  # whether torch was built with it


@dataclass(frozen=True)
class PromptKeys:
    """What cross-attention sees of a prompt, for each block.

    Attributes:
        keys, values: ``[1, distinct tokens, heads, head_dim]``.
        bias: added to the scores, ``[1, 1, 1, distinct tokens]``; ``None`` if no token repeats.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None


@lru_cache(maxsize=4)
def _rotary_tables(
    grid: tuple[int, int, int], head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, fp32 ``[tokens, head_dim / 2]``."""
    angles = rotary_angles(grid, head_dim, device)
    return angles.cos().float(), angles.sin().float()


def rotary_tables(
    grid: tuple[int, int, int], head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cached, but made anew while a graph is captured: those must live as long as the graph."""
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    make = _rotary_tables.__wrapped__ if capturing else _rotary_tables
    return make(grid, head_dim, device)


def log_counts(count: int, dtype: torch.dtype) -> list[float]:
    """Numbers of ``dtype`` whose exponentials add up to ``count``, to one part in 1e5.

    One does not do: in bf16 the logarithm of 490 is off by 0.003, its exponential by 2 of them.
    """
    biases: list[float] = []
    rest = float(count)
    while rest > 1e-5 * count and len(biases) < count:
        bias = torch.tensor(rest).log().to(dtype)
        if bias.exp() > rest:  # the next lower number: what is left over must not be negative
            bias = torch.nextafter(bias, bias.new_tensor(-torch.inf))
        biases.append(bias.item())
        rest -= math.exp(biases[-1])
    return biases if len(biases) < count else [0.0] * count


def distinct_tokens(context: Tensor) -> tuple[Tensor, list[float]]:
    """Let a few tokens stand for the many zeros that end a prompt ``[1, tokens, text_dim]``.

    Returns:
        The prompt with a shorter tail, and what to add to the scores of the tail's tokens so that
        they weigh as much as all the zeros; an empty list if nothing had to change.
    """
    if context.is_meta:  # a rehearsal: there are no numbers
        return context, []
    seen = context[0].ne(0).any(dim=1).nonzero()
    length = int(seen[-1]) + 1 if len(seen) else 0
    biases = log_counts(context.shape[1] - length, context.dtype)
    if len(biases) >= context.shape[1] - length:
        return context, []
    return context[:, : length + len(biases)], biases


def linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """``gelu(layer(x))``, the tanh form.

    On a CPU oneDNN applies it to the product while that is in the cache, through the operator that
    ``torch.compile`` would use; PyTorch's own gelu takes longer there than the product.
    """
    fused = ONEDNN and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if fused and not torch.is_grad_enabled():
        linear = torch.ops.mkldnn._linear_pointwise
        return linear(x, layer.weight, layer.bias, "gelu", [], "tanh")
    return F.gelu(layer(x), approximate="tanh")


class _FusedBlock(nn.Module):
    """A block's weights, merged, and the modulation of every timestep known in advance."""

    modulation: Tensor

    def __init__(self, block: Block, modulations: Tensor) -> None:
        super().__init__()
        self.eps, own = block.eps, block.self_attn
        self.heads = own.heads
        layers = (own.q, own.k, own.v)
        self.qkv_weight = _frozen(torch.cat([layer.weight for layer in layers]))
        self.qkv_bias = _frozen(torch.cat([layer.bias for layer in layers]))
        self.norm_q, self.norm_k, self.o = own.norm_q, own.norm_k, own.o
        self.ffn1, _, self.ffn2 = cast(tuple[nn.Linear, nn.GELU, nn.Linear], tuple(block.ffn))
        self.cross_attn: AttentionLayer | None = getattr(block, "cross_attn", None)
        self.norm3: nn.LayerNorm | None = getattr(block, "norm3", None)
        # [timesteps, 6, dim]: added in the weights' dtype, as the reference does
        self.register_buffer("modulation", block.modulation + modulations, persistent=False)


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)


class FusedDit(nn.Module):
    """Base or draft, ready to be run at a few known timesteps.

    It takes its weights from a :class:`~psssr_fast.models.dit.Dit`, with which it shares what it
    does not merge, and computes what :meth:`Dit.step` computes. Calls share no mutable state.

    Args:
        dit: the reference.
        timesteps: those it will be asked for.
        prompt: embedding ``[1, tokens, text_dim]``; ``None`` for a model without cross-attention.
    """

    head_modulation: Tensor

    def __init__(self, dit: Dit, timesteps: Sequence[float], prompt: Tensor | None = None) -> None:
        super().__init__()
        self.size, self.draft = dit.size, dit.draft
        self.attention, self.windows = dit.attention, dit.windows
        self.patch_embedding = dit.patch_embedding
        self.text_embedding: nn.Module | None = getattr(dit, "text_embedding", None)
        self.head: nn.Linear = dit.head.head
        self.timesteps = tuple(timesteps)
        weight = dit.patch_embedding.weight
        with torch.no_grad():
            times = torch.tensor(self.timesteps, dtype=torch.float32, device=weight.device)
            sinusoid = timestep_embedding(times, dit.size.freq_dim, weight.dtype)
            embedding = dit.time_embedding(sinusoid)
            modulations = dit.time_projection(embedding).unflatten(1, (6, dit.size.dim))
            # Lists for our own use, and the modules registered for .parameters()
            self._blocks = [_FusedBlock(cast(Block, block), modulations) for block in dit.blocks]
            self._joins = [cast(nn.Linear, layer) for layer in dit.fc_layers] if dit.draft else []
            self.blocks, self.fc_layers = nn.ModuleList(self._blocks), nn.ModuleList(self._joins)
            self.register_buffer(
                "head_modulation", dit.head.modulation + embedding[:, None], persistent=False
            )
            self.prompt = None if prompt is None else self._prompt_keys(prompt)

    def _prompt_keys(self, context: Tensor) -> PromptKeys:
        """Keys and values of a prompt in every block."""
        assert self.text_embedding is not None
        text, tail = distinct_tokens(context)
        hidden = self.text_embedding(text)
        keys, values = [], []
        for block in self._blocks:
            cross = block.cross_attn
            assert cross is not None
            keys.append(cross.norm_k(cross.k(hidden)).unflatten(-1, (cross.heads, -1)))
            values.append(cross.v(hidden).unflatten(-1, (cross.heads, -1)))
        bias = None
        if tail:
            bias = hidden.new_zeros(1, 1, 1, hidden.shape[1])
            bias[..., -len(tail) :] = hidden.new_tensor(tail)
        return PromptKeys(tuple(keys), tuple(values), bias)

    def prepare_features(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``W_f feature + b`` of every kept feature of the base; all draft steps share it."""
        dim = self.size.dim
        return tuple(
            F.linear(feature, layer.weight[:, :dim], layer.bias)
            for feature, layer in zip(features, self._joins, strict=True)
        )

    def step(
        self,
        latents: Tensor,
        timestep: float,
        context: None = None,
        features: Sequence[Tensor] = (),
    ) -> DitOutput:
        """One evaluation.

        Args:
            latents: state and condition, ``[batch, in_channels, frames, height, width]``.
            timestep: one of those given to the constructor.
            context: not used; the prompt was given to the constructor.
            features: for a draft, from :meth:`prepare_features`.

        Raises:
            UsageError: it was made for other timesteps.
        """
        assert len(features) == len(self._joins)
        if timestep not in self.timesteps:
            raise UsageError(
                f"this engine was made for timesteps {self.timesteps}; got {timestep:g}; make a "
                "new Upscaler with these settings, or one with engine='plain'"
            )
        index = self.timesteps.index(timestep)
        patches = self.patch_embedding(latents)
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        x = patches.flatten(2).transpose(1, 2).contiguous()
        tables = rotary_tables(grid, self.size.dim // self.size.heads, x.device)
        kept = []
        for number, block in enumerate(self._blocks):
            if self.draft:
                weight = self._joins[number].weight[:, self.size.dim :]
                x = feature_project(x, weight, features[number])
            elif number in self.size.kept_blocks:
                kept.append(x)
            x = self._block(number, block, x, index, grid, tables)
        shift, scale = self.head_modulation[index].expand(len(x), -1, -1).unbind(1)
        out = self.head(norm_modulate(x, shift, scale, self.size.eps))
        return DitOutput(unpatchify(out, grid, self.size), tuple(kept))

    def _block(
        self,
        number: int,
        block: _FusedBlock,
        x: Tensor,
        index: int,
        grid: tuple[int, int, int],
        tables: tuple[Tensor, Tensor],
    ) -> Tensor:
        modulation = block.modulation[index].expand(len(x), -1, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
        hidden = norm_modulate(x, shift1, scale1, block.eps)
        x = gated_add(x, self._attend(number, block, hidden, grid, tables), gate1)
        if self.prompt is not None:
            x = x + self._cross(number, block, x, self.prompt)
        hidden = linear_gelu(norm_modulate(x, shift2, scale2, block.eps), block.ffn1)
        return gated_add(x, block.ffn2(hidden), gate2)

    def _attend(
        self,
        number: int,
        block: _FusedBlock,
        x: Tensor,
        grid: tuple[int, int, int],
        tables: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Self-attention over the clip, or over the windows of this block."""
        heads = block.heads
        q, k, v = F.linear(x, block.qkv_weight, block.qkv_bias).chunk(3, dim=-1)
        cos, sin = tables
        q, k = qk_norm_rope(
            q, k, block.norm_q.weight, block.norm_k.weight, cos, sin, heads, block.eps
        )
        v = v.unflatten(-1, (heads, -1))
        if self.size.attention_window is None:
            out = self.attention(q, k, v, None)
        else:
            shifted = number % 2 == 1
            layout = Layout.over(grid, self.size.attention_window, shifted, x.device)
            out = self._attend_in_windows(q, k, v, layout)
        return block.o(out.flatten(-2))

    def _attend_in_windows(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """By the backend's own way with windows; on a CPU, tile by tile; else of copies of them."""
        if self.windows is not None:
            return self.windows(q, k, v, layout.grid, layout.window, layout.shift)
        if q.device.type == "cpu":
            return window_attention(q, k, v, layout.grid, layout.window, layout.shift, (0, 0, 0))
        mask = layout.mask_for(len(q))
        out = self.attention(layout.split(q), layout.split(k), layout.split(v), mask)
        return layout.join(out, batch=len(q))

    def _cross(self, number: int, block: _FusedBlock, x: Tensor, context: PromptKeys) -> Tensor:
        """Attention to the prompt."""
        cross, norm3 = block.cross_attn, block.norm3
        assert cross is not None and norm3 is not None
        rows = (len(x), -1)
        hidden = norm_modulate(
            x, norm3.bias.expand(rows), norm3.weight.expand(rows), norm3.eps, affine=True
        )
        q = cross.q(hidden)
        # No keys: the prompt's were normalised when the engine was made.
        weight, eps = cross.norm_q.weight, cross.norm_q.eps
        q, _ = qk_norm_rope(q, q[:, :0], weight, weight, None, None, cross.heads, eps)
        key, value = (y[number].expand(len(x), -1, -1, -1) for y in (context.keys, context.values))
        q, key, value = (y.transpose(1, 2) for y in (q, key, value))
        out = F.scaled_dot_product_attention(q, key, value, attn_mask=context.bias)
        return cross.o(out.transpose(1, 2).flatten(-2))
