"""The Wan2.1 diffusion transformer: PS-SR's base, and the draft that reuses the base's features.

Parameter names are those of the original Wan2.1 release. Numerics are those of the PS-SR release:
everything in the weights' dtype, except RMSNorm's mean and the rotation, in fp32, and the
timestep's sinusoid, in fp64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.attention.backend import Attention, WindowAttention
from psssr_fast.attention.sdpa import attention_sdpa
from psssr_fast.models.attention_windows import Layout
from psssr_fast.models.sizes import DitSize


class DitOutput(NamedTuple):
    """What a step of the transformer gives.

    Attributes:
        velocity: ``[batch, out_channels, frames, height, width]``, like the latents.
        features: the base's input to each kept block, ``[batch, tokens, dim]``; empty for a draft.
    """

    velocity: Tensor
    features: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Step:
    """What every block of one forward shares."""

    modulation: Tensor  # [batch, 6, dim], from the timestep
    cos: Tensor  # [tokens, 1, head_dim / 2]
    sin: Tensor
    layouts: tuple[Layout | None, Layout | None]  # attention windows of even and odd blocks
    context: Tensor | None  # [batch, text tokens, dim]
    attention: Attention
    windows: WindowAttention | None


def timestep_embedding(timestep: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding ``[cos | sin]`` of ``timestep`` ``[batch]``, computed in fp64.

    Frequencies are ``10000 ** (-i / (dim / 2))``; returned in ``dtype``.
    """
    half = dim // 2
    powers = torch.arange(half, dtype=torch.float64, device=timestep.device).div(half)
    angle = timestep.double()[:, None] * torch.pow(10000.0, -powers)
    return torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)


def rotary_angles(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Angles of the 3-D rotary embedding, fp64 ``[tokens, head_dim / 2]``.

    The complex pairs of a head are split between time, height and width (22, 21, 21 of 64), each
    axis with frequencies ``10000 ** (-2i / its own length)`` and positions from 0.
    """
    space = 2 * (head_dim // 6)
    angles = []
    for axis, (size, dim) in enumerate(
        zip(grid, (head_dim - 2 * space, space, space), strict=True)
    ):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
        position = torch.arange(size, dtype=torch.float64, device=device)
        angle = position[:, None] * torch.pow(10000.0, -exponent)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        angles.append(angle.view(shape).expand(*grid, dim // 2))
    return torch.cat(angles, dim=-1).flatten(0, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of ``x`` ``[batch, tokens, heads, head_dim]``, in fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis; the mean is taken in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class AttentionLayer(nn.Module):
    """Projections shared by self- and cross-attention; queries and keys are normalised."""

    def __init__(self, size: DitSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.q = nn.Linear(size.dim, size.dim)
        self.k = nn.Linear(size.dim, size.dim)
        self.v = nn.Linear(size.dim, size.dim)
        self.o = nn.Linear(size.dim, size.dim)
        self.norm_q = RMSNorm(size.dim, size.eps)
        self.norm_k = RMSNorm(size.dim, size.eps)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        return tuple(y.unflatten(-1, (self.heads, -1)) for y in (q, k, v))

    def forward(self, x: Tensor, step: _Step, layout: Layout | None) -> Tensor:
        """Self-attention over the clip, or over each window of ``layout``."""
        q, k, v = self.project(x, x)
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        if layout is None:
            out = step.attention(q, k, v, None)
        elif step.windows is not None and not (torch.is_grad_enabled() and q.requires_grad):
            out = step.windows(q, k, v, layout.grid, layout.window, layout.shift)
        else:
            q, k, v = (layout.split(y) for y in (q, k, v))
            out = layout.join(step.attention(q, k, v, layout.mask_for(len(x))), batch=len(x))
        return self.o(out.flatten(-2))

    def cross(self, x: Tensor, step: _Step) -> Tensor:
        """Attention of the clip to the prompt; every text token is seen, padding included."""
        assert step.context is not None
        out = step.attention(*self.project(x, step.context), None)
        return self.o(out.flatten(-2))


def _modulation(vectors: int, dim: int) -> nn.Parameter:
    """Variance ``1 / dim``, as Wan's; uniform, because ``normal_`` is slow on the meta device."""
    bound = (3 / dim) ** 0.5
    return nn.Parameter(torch.empty(1, vectors, dim).uniform_(-bound, bound))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, the outer two modulated by the timestep."""

    def __init__(self, size: DitSize) -> None:
        super().__init__()
        self.eps = size.eps
        self.self_attn = AttentionLayer(size)
        if size.text_dim:
            self.cross_attn = AttentionLayer(size)
            self.norm3 = nn.LayerNorm(size.dim, eps=size.eps)
        self.ffn = nn.Sequential(
            nn.Linear(size.dim, size.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(size.ffn_dim, size.dim),
        )
        self.modulation = _modulation(6, size.dim)

    def forward(self, x: Tensor, step: _Step, layout: Layout | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + step.modulation).chunk(
            6, dim=1
        )
        branch = self.self_attn(self._normalise(x) * (1 + scale1) + shift1, step, layout)
        x = x + gate1 * branch
        if step.context is not None:
            x = x + self.cross_attn.cross(self.norm3(x), step)
        branch = self.ffn(self._normalise(x) * (1 + scale2) + shift2)
        return x + gate2 * branch

    def _normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class Head(nn.Module):
    """From tokens to the velocity of a patch of latents."""

    def __init__(self, size: DitSize) -> None:
        super().__init__()
        self.eps = size.eps
        patch = size.patch[0] * size.patch[1] * size.patch[2]
        self.head = nn.Linear(size.dim, patch * size.out_channels)
        self.modulation = _modulation(2, size.dim)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = (self.modulation + embedding[:, None]).chunk(2, dim=1)
        normal = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return self.head(normal * (1 + scale) + shift)


class Dit(nn.Module):
    """Base or draft transformer.

    A draft has one block for each of ``size.kept_blocks``; before draft block ``j`` the base's
    feature ``j`` joins the hidden state: ``h = fc_layers[j]([feature_j, h])``.

    Args:
        size: dimensions.
        draft: build the draft instead of the base.
        attention: how to attend; see :mod:`psssr_fast.attention`.
        windows: how to attend in windows where no gradient is needed, if not by ``attention`` of
            copies of them.
    """

    def __init__(
        self,
        size: DitSize,
        draft: bool = False,
        attention: Attention = attention_sdpa,
        windows: WindowAttention | None = None,
    ) -> None:
        super().__init__()
        self.size, self.draft = size, draft
        self.attention, self.windows = attention, windows
        dim = size.dim
        self.patch_embedding = nn.Conv3d(size.in_channels, dim, size.patch, size.patch)
        if size.text_dim:
            self.text_embedding = nn.Sequential(
                nn.Linear(size.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
            )
        self.time_embedding = nn.Sequential(
            nn.Linear(size.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        layers = len(size.kept_blocks) if draft else size.layers
        self.blocks = nn.ModuleList(Block(size) for _ in range(layers))
        if draft:
            self.fc_layers = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(layers))
        self.head = Head(size)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        features: Sequence[Tensor] = (),
    ) -> DitOutput:
        """One evaluation of the network.

        Args:
            latents: state and condition, ``[batch, in_channels, frames, height, width]``; sizes
                are multiples of ``size.patch``.
            timestep: ``[batch]``, 0 to 1000; fp32, so that it is not rounded.
            context: the prompt's embedding, ``[batch, text tokens, text_dim]``; ``None`` for a
                model without cross-attention.
            features: for a draft, what the base kept.
        """
        assert len(features) == (len(self.blocks) if self.draft else 0)
        x = self.patch_embedding(latents)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2)
        embedding = self.time_embedding(
            timestep_embedding(timestep, self.size.freq_dim, latents.dtype)
        )
        step = self._step(grid, embedding, context, x.device)
        kept = []
        for index, block in enumerate(self.blocks):
            if self.draft:
                x = self.fc_layers[index](torch.cat([features[index], x], dim=-1))
            elif index in self.size.kept_blocks:
                kept.append(x)
            x = block(x, step, step.layouts[index % 2])
        return DitOutput(unpatchify(self.head(x, embedding), grid, self.size), tuple(kept))

    def _step(
        self,
        grid: tuple[int, int, int],
        embedding: Tensor,
        context: Tensor | None,
        device: torch.device,
    ) -> _Step:
        angles = rotary_angles(grid, self.size.dim // self.size.heads, device)[:, None]
        window = self.size.attention_window
        layouts: tuple[Layout | None, Layout | None] = (None, None)
        if window is not None:
            layouts = (
                Layout.over(grid, window, shifted=False, device=device),
                Layout.over(grid, window, shifted=True, device=device),
            )
        return _Step(
            modulation=self.time_projection(embedding).unflatten(1, (6, self.size.dim)),
            cos=angles.cos().float(),
            sin=angles.sin().float(),
            layouts=layouts,
            context=self.text_embedding(context) if self.size.text_dim else None,
            attention=self.attention,
            windows=self.windows,
        )

    def step(
        self,
        latents: Tensor,
        timestep: float,
        context: Tensor | None = None,
        features: Sequence[Tensor] = (),
    ) -> DitOutput:
        """:meth:`forward` at one timestep for the whole batch: what the sampler asks for."""
        # fp32 whatever the latents are: in bf16, 699 would become 700 unasked
        time = torch.full((len(latents),), timestep, dtype=torch.float32, device=latents.device)
        return self(latents, time, context, features)

    def prepare_features(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """What :meth:`step` wants of the base's features: themselves."""
        return features


def unpatchify(x: Tensor, grid: tuple[int, int, int], size: DitSize) -> Tensor:
    """From ``[batch, tokens, patch x channels]`` (channel fastest) back to latents."""
    x = x.unflatten(1, grid).unflatten(-1, (*size.patch, size.out_channels))
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # b f h w x y z c -> b c f x h y w z
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
