"""The Wan VAE of ``models/vae.py`` rebuilt for speed: the same function, rounding apart.

- Activations have their channels last from end to end, and every convolution's input lives in a
  *ring* of frames into which the normalisation before it writes: the history that a causal
  convolution needs is simply still there, and nothing is padded, concatenated or cloned.
- Bias and residual are added, and taps on the zeros before the clip skipped, inside the
  convolution; doubling the picture and convolving it is four small convolutions of the small one.
- What is linear is folded: the latents' mean and standard deviation into the 1x1 convolutions
  beside them, and on the encoder's side that one into the last 3x3x3 convolution.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.models.vae import (
    CausalSequential,
    Downsample,
    FrameAttention,
    ResidualBlock,
    RMSNorm,
    Upsample,
    WanVae,
    check_latents,
    check_picture,
    clip_of,
    frames_of,
)
from psssr_fast.ops._bands import in_bands
from psssr_fast.ops.causal_conv3d import causal_conv3d, pack_conv_weight
from psssr_fast.ops.mid_attention import mid_attention
from psssr_fast.ops.rms_norm_silu import rms_norm_silu, rms_norm_silu_into
from psssr_fast.ops.upsample_conv2d import pack_upsample_weight, upsample_conv2d
from psssr_fast.runtime.rings import Pass, Place, put


class _Convolution(nn.Module):
    """A causal convolution whose input is in a ring."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.history = weight.shape[2] - 1
        self.place: Place | None = None  # of the ring of its own that it has until it is given one
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        self.register_buffer("weight", pack_conv_weight(weight))
        self.register_buffer("bias", bias)

    def after_norm(
        self, x: Tensor, gamma: Tensor, state: Pass, residual: Tensor | None = None
    ) -> Tensor:
        """Convolve ``silu(norm(x))`` and add ``residual``."""
        ring, first, past = state.ring(self, x, self.history, self.place)
        rms_norm_silu_into(x, gamma, ring, first, True)
        return self._convolve(ring, x.shape[2], first, past, residual)

    def forward(self, x: Tensor, state: Pass) -> Tensor:
        """Convolve ``x`` itself."""
        if self.history == 0:
            return self._convolve(x, x.shape[2], 0, 0, None)
        ring, first, past = state.ring(self, x, self.history)
        put(x, ring, first)
        return self._convolve(ring, x.shape[2], first, past, None)

    def _convolve(
        self, ring: Tensor, frames: int, first: int, past: int, residual: Tensor | None
    ) -> Tensor:
        return causal_conv3d(ring, self.weight, self.bias, residual, first, frames, past)


def _convolution(conv: object) -> _Convolution:
    assert isinstance(conv, nn.Conv3d)
    return _Convolution(conv.weight, conv.bias)


def _gamma(norm: object) -> Tensor:
    assert isinstance(norm, RMSNorm)
    return norm.gamma.flatten()


class _Residual(nn.Module):
    """:class:`~psssr_fast.models.vae.ResidualBlock`."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        norm1, _, conv1, norm2, _, _, conv2 = block.residual
        self.gamma1, self.conv1 = _gamma(norm1), _convolution(conv1)
        self.gamma2, self.conv2 = _gamma(norm2), _convolution(conv2)
        same = isinstance(block.shortcut, nn.Identity)
        self.shortcut = None if same else _convolution(block.shortcut)

    def convolutions(self) -> list[_Convolution]:
        """Those that run after a norm, in their order."""
        return [self.conv1, self.conv2]

    def forward(self, x: Tensor, state: Pass) -> Tensor:
        kept = x if self.shortcut is None else self.shortcut(x, state)
        hidden = self.conv1.after_norm(x, self.gamma1, state)
        return self.conv2.after_norm(hidden, self.gamma2, state, residual=kept)


class _Attention(nn.Module):
    """:class:`~psssr_fast.models.vae.FrameAttention`; channels last makes its 1x1s products."""

    def __init__(self, block: FrameAttention) -> None:
        super().__init__()
        self.gamma = _gamma(block.norm)
        self.qkv, self.proj = block.to_qkv, block.proj

    def forward(self, x: Tensor, state: Pass) -> Tensor:
        normed = rms_norm_silu(x, self.gamma, False).permute(0, 2, 3, 4, 1)  # B T H W C
        tokens = normed.flatten(2, 3).flatten(0, 1)
        q, k, v = F.linear(tokens, self.qkv.weight.flatten(1), self.qkv.bias).chunk(3, dim=-1)
        mixed = F.linear(mid_attention(q, k, v), self.proj.weight.flatten(1), self.proj.bias)
        return x + mixed.view(normed.shape).permute(0, 4, 1, 2, 3)


class _Down(nn.Module):
    """:class:`~psssr_fast.models.vae.Downsample`: its own convolutions, channels last, in bands."""

    def __init__(self, block: Downsample) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, state: Pass) -> Tensor:
        time, cache = self.block.time_conv, state.cache
        x = self._in_space(x)
        if time is None:
            return x
        if not cache.at_start:
            return self._in_time(cache.prepend(time, x, 1))
        cache.remember(time, x, 1)
        if x.shape[2] == 1:
            return x
        return _channels_last(torch.cat([x[:, :, :1], self._in_time(x)], dim=2))

    def _in_space(self, x: Tensor) -> Tensor:
        """Every frame at half its height and width."""

        def run(rows: slice) -> Tensor:
            return clip_of(self.block.resample(frames_of(x[..., rows, :])), len(x))

        elements = x[..., 0, 0].numel() * (x.shape[4] + 1)
        return _channels_last(in_bands(run, x.shape[3], elements, halo=2, step=2))

    def _in_time(self, x: Tensor) -> Tensor:
        """A frame of every three, two apart."""
        time = self.block.time_conv
        assert time is not None

        def run(rows: slice) -> Tensor:
            result: Tensor = time(x[..., rows, :])
            return result

        return _channels_last(in_bands(run, x.shape[3], x[..., 0, :].numel()))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


class _Up(nn.Module):
    """:class:`~psssr_fast.models.vae.Upsample`."""

    phases: Tensor

    def __init__(self, block: Upsample) -> None:
        super().__init__()
        conv = block.resample[1]
        assert isinstance(conv, nn.Conv2d)
        self.time_conv = None if block.time_conv is None else _convolution(block.time_conv)
        self.conv = conv
        self.register_buffer("phases", pack_upsample_weight(conv.weight))

    def forward(self, x: Tensor, state: Pass) -> Tensor:
        if self.time_conv is not None:
            alone = 1 if state.cache.at_start else 0
            if x.shape[2] > alone:
                pairs = _interleaved(self.time_conv(x[:, :, alone:], state))
                x = torch.cat([x[:, :, :1], pairs], dim=2) if alone else pairs
        return upsample_conv2d(x, self.conv.weight, self.conv.bias, self.phases)


def _interleaved(x: Tensor) -> Tensor:
    """``[B, 2C, T, H, W]`` as ``[B, C, 2T, H, W]``, both halves in turn; channels last."""
    halves = x.permute(0, 2, 3, 4, 1).unflatten(-1, (2, -1))  # B T H W 2 C
    return halves.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).permute(0, 4, 1, 2, 3)


class _Head(nn.Module):
    """The last norm and convolution of either half."""

    def __init__(self, norm: object, convolution: _Convolution) -> None:
        super().__init__()
        self.gamma, self.convolution = _gamma(norm), convolution

    def convolutions(self) -> list[_Convolution]:
        """The only one."""
        return [self.convolution]

    def forward(self, x: Tensor, state: Pass) -> Tensor:
        return self.convolution.after_norm(x, self.gamma, state)


def _layer(block: nn.Module) -> nn.Module:
    kinds: list[tuple[type, Callable[..., nn.Module]]] = [
        (ResidualBlock, _Residual),
        (FrameAttention, _Attention),
        (Downsample, _Down),
        (Upsample, _Up),
    ]
    return next(make for kind, make in kinds if isinstance(block, kind))(block)


def _layers(half: CausalSequential, names: tuple[str, str], head: _Head) -> nn.ModuleList:
    """The layers of encoder or decoder in their order."""
    first, last = (getattr(half, name) for name in names)
    blocks = [_layer(block) for part in (first, last) for block in part]
    return nn.ModuleList([_convolution(half.conv1), *blocks, head])


class FusedVae(nn.Module):
    """The VAE as an engine: :class:`~psssr_fast.models.vae.WanVae`'s interface and results.

    Args:
        vae: the reference, whose weights are packed here.
    """

    def __init__(self, vae: WanVae) -> None:
        super().__init__()
        self.size = vae.size
        with torch.no_grad():
            self.encoder = _layers(vae.encoder, ("downsamples", "middle"), _encoder_head(vae))
            norm, _, conv = cast(CausalSequential, vae.decoder.head)
            self.decoder = _layers(
                vae.decoder, ("middle", "upsamples"), _Head(norm, _convolution(conv))
            )
            self.from_latents = _unnormalising(vae)
        _share_rings(self.encoder, vae.size.temporal_factor)
        _share_rings(self.decoder, 1)

    def encode(
        self, picture: Tensor, *, chunked: bool = False, at_once: int | None = None
    ) -> Tensor:
        """As :meth:`WanVae.encode <psssr_fast.models.vae.WanVae.encode>`.

        ``at_once``: of a chunk, layers take so many frames at a time, or as few as they can.
        """
        check_picture(picture, self.size)
        frames, group = picture.shape[2], self.size.temporal_factor
        chunks = [1] + [group] * (frames // group) if chunked else [frames]
        return _run(self.encoder, picture, chunks, at_once)

    def decode(
        self, latents: Tensor, *, chunked: bool = False, at_once: int | None = None
    ) -> Tensor:
        """As :meth:`WanVae.decode <psssr_fast.models.vae.WanVae.decode>`.

        ``at_once``: of a chunk, layers take so many frames at a time, or as few as they can.
        """
        check_latents(latents, self.size)
        frames = latents.shape[2]
        latents = self.from_latents(latents, Pass(keep=False))
        return _run(self.decoder, latents, [1] * frames if chunked else [frames], at_once)


def _share_rings(layers: nn.ModuleList, frames: int) -> None:
    """Give the convolutions after norms their places; ``frames`` are in a chunk of the input.

    Those share a ring that have as many channels and are on the same level: between two layers
    that change the size of the picture.
    """
    groups: dict[tuple[int, int], list[_Convolution]] = {}
    lengths: list[int] = [frames]  # of a chunk on every level
    for layer in layers:
        if isinstance(layer, _Down):
            lengths.append(lengths[-1] // (2 if _halves_time(layer) else 1))
        elif isinstance(layer, _Up):
            lengths.append(lengths[-1] * (1 if layer.time_conv is None else 2))
        elif isinstance(layer, _Residual | _Head):
            for conv in layer.convolutions():
                groups.setdefault((len(lengths) - 1, conv.weight.shape[1]), []).append(conv)
    for ring, ((level, _), sharing) in enumerate(groups.items()):
        for index, conv in enumerate(sharing):
            conv.place = Place(ring, index, len(sharing), lengths[level])


def _run(layers: nn.ModuleList, x: Tensor, chunks: list[int], at_once: int | None) -> Tensor:
    """Send ``x`` through the layers in consecutive chunks of so many frames."""
    state = Pass(len(chunks) > 1, at_once)
    outputs = []
    for chunk in torch.split(x, chunks, dim=2):
        outputs.append(_through(list(layers), chunk, state, at_once))
        state.cache.at_start = False
    return torch.cat(outputs, dim=2)


def _through(layers: list[nn.Module], x: Tensor, state: Pass, at_once: int | None) -> Tensor:
    """Send a chunk through layers, ``at_once`` of its frames at a time.

    The layers' rings remember what came before, as from chunk to chunk. Where the frames are
    halved two are needed for one, and the halves are collected for what follows.
    """
    for index, layer in enumerate(layers):
        if at_once is not None and not state.cache.at_start and x.shape[2] > at_once:
            rest = layers[index:]
            halving = next((i for i, one in enumerate(rest) if _halves_time(one)), None)
            end = len(rest) if halving is None else halving + 1
            step = at_once if halving is None else max(2, at_once - at_once % 2)
            if x.shape[2] > step:
                parts = [_through(rest[:end], y, state, at_once) for y in x.split(step, dim=2)]
                return _through(rest[end:], torch.cat(parts, dim=2), state, at_once)
        x = layer(x, state)
    return x


def _halves_time(layer: nn.Module) -> bool:
    return isinstance(layer, _Down) and layer.block.time_conv is not None


def _encoder_head(vae: WanVae) -> _Head:
    """The encoder's last convolution, its 1x1 (mean half) and the latents' statistics, in one.

    ``((W1 (W x + b) + b1) - mean) / std``, linear in ``x``; folded in fp32 and rounded once.
    """
    norm, _, conv = cast(CausalSequential, vae.encoder.head)
    assert isinstance(conv, nn.Conv3d) and conv.bias is not None and vae.conv1.bias is not None
    mean, std = _statistics(vae, conv.weight)
    wide = mean.dtype
    count = vae.size.z_dim
    mix = vae.conv1.weight[:count].flatten(1).to(wide) / std[:, None]
    shift = (vae.conv1.bias[:count].to(wide) - mean) / std
    weight = (mix @ conv.weight.to(wide).flatten(1)).unflatten(1, conv.weight.shape[1:])
    bias = mix @ conv.bias.to(wide) + shift
    return _Head(norm, _Convolution(weight.to(conv.weight), bias.to(conv.bias)))


def _unnormalising(vae: WanVae) -> _Convolution:
    """``conv2(latents * std + mean)`` as one 1x1 convolution."""
    conv = vae.conv2
    assert conv.bias is not None
    mean, std = _statistics(vae, conv.weight)
    wide = mean.dtype
    mix = conv.weight.flatten(1).to(wide)
    weight = (mix * std).view(conv.weight.shape)
    bias = conv.bias.to(wide) + mix @ mean
    return _Convolution(weight.to(conv.weight), bias.to(conv.bias))


def _statistics(vae: WanVae, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents' channels, in fp32 at least, beside ``like``."""
    wide = torch.promote_types(like.dtype, torch.float32)
    mean, std = (x.flatten().to(like.device, wide) for x in (vae.latent_mean, vae.latent_std))
    return mean, std
