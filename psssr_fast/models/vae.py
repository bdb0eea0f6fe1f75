"""The 3D causal VAE of Wan2.1, in plain PyTorch: the reference that faster versions are judged by.

What it computes. Frame 0 of a clip stands alone, every later group of four frames becomes one
latent frame, and nothing looks forward in time:

- A causal convolution sees each frame and the two before it at its own input; before the clip
  begins there are zeros.
- Halving time (encoder) keeps frame 0 and puts a stride-2 convolution of three frames, without
  padding, on the whole sequence: output ``i > 0`` sees input frames ``2i - 2 .. 2i``.
- Doubling time (decoder) keeps frame 0 and makes two frames of each later one by a causal
  convolution over the later frames only: frame 0 is no part of its history, zeros are.
- All else (spatial resampling, normalisation, attention in the middle) works frame by frame.

The function therefore does not depend on how a clip is cut into chunks, as long as each
convolution is handed the last frames of the chunk before. :class:`CausalCache` carries them.

Architecture and parameter names: Wan-Video/Wan2.1, ``wan/modules/vae.py``.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.errors import UsageError
from psssr_fast.models.sizes import VaeSize

# Statistics of each latent channel, published with Wan2.1 (the file of weights lacks them).
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


class CausalCache:
    """What the causal layers remember of a clip from one chunk to the next.

    One cache belongs to one pass over one clip and is passed down explicitly; the modules
    themselves hold no state, so that one model can serve several threads.

    Attributes:
        at_start: whether the present chunk begins with frame 0 of the clip.
    """

    def __init__(self, keep: bool = True) -> None:
        """Start a clip; ``keep=False`` saves the memory when it comes as a single chunk."""
        self.at_start = True
        self._keep = keep
        self._frames: dict[nn.Module, Tensor] = {}

    def remember(self, layer: nn.Module, x: Tensor, count: int) -> None:
        """Keep the last ``count`` frames of ``x`` as the history of ``layer``."""
        if self._keep:
            self._frames[layer] = x[:, :, -count:].clone()  # a view would keep all of x alive

    def prepend(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Put the ``count`` frames that came before ``x`` in front of it, and remember its last.

        Args:
            layer: whose input ``x`` is.
            x: a chunk, ``[B, C, T, H, W]``.
            count: frames of history that ``layer`` needs; zeros where there are none yet.

        Returns:
            ``[B, C, count + T, H, W]``.
        """
        history = self._frames.get(layer)
        if history is None:
            history = torch.zeros_like(x[:, :, :1]).expand(-1, -1, count, -1, -1)
        x = torch.cat([history, x], dim=2)
        self.remember(layer, x, count)
        return x


class Causal:
    """Marks a layer that is called as ``layer(x, cache)``."""


class CausalSequential(nn.Sequential, Causal):
    """Layers one after the other, some of which look back in time."""

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:  # type: ignore[override]
        """Run ``x`` (``[B, C, T, H, W]``) through all layers."""
        for layer in self:
            x = layer(x, cache) if isinstance(layer, Causal) else layer(x)
        return x


class CausalConv3d(nn.Conv3d, Causal):
    """Convolution over ``kernel`` (time, height, width) that pads time on the left only."""

    def __init__(self, in_dim: int, out_dim: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(in_dim, out_dim, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:  # type: ignore[override]
        """Map ``[B, in_dim, T, H, W]`` to ``[B, out_dim, T, H, W]``."""
        return super().forward(cache.prepend(self, x, self.kernel_size[0] - 1))


class RMSNorm(nn.Module):
    """Normalise over channels (dimension 1): ``x / max(|x|, 1e-12) * sqrt(C) * gamma``.

    Computed in fp32 at least, rounded once.
    """

    def __init__(self, dim: int, other_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * other_dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[B, C, ...]``; same shape and dtype out."""
        wide = torch.promote_types(x.dtype, torch.float32)
        gain = self.gamma.to(wide) * x.shape[1] ** 0.5
        return (F.normalize(x.to(wide), dim=1, eps=1e-12) * gain).to(x.dtype)


class ResidualBlock(nn.Module, Causal):
    """Twice norm, SiLU and causal convolution, added to the input (or its 1x1x1 projection)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = CausalSequential(
            RMSNorm(in_dim),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim),
            RMSNorm(out_dim),
            nn.SiLU(),
            nn.Identity(),  # dropout in training: it holds the place of its index in the names
            CausalConv3d(out_dim, out_dim),
        )
        same = in_dim == out_dim
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_dim, out_dim, 1)

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Map ``[B, in_dim, T, H, W]`` to ``[B, out_dim, T, H, W]``."""
        return self.shortcut(x) + self.residual(x, cache)


class FrameAttention(nn.Module):
    """Single-head self-attention over the pixels of each frame, added to the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, other_dims=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, T, H, W]`` to the same shape."""
        frames = frames_of(x)
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).mT.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + clip_of(self.proj(mixed.mT.reshape(frames.shape)), len(x))


class Downsample(nn.Module, Causal):
    """Halve height and width and, with ``temporal``, the frames after the first."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        pad = nn.ZeroPad2d((0, 1, 0, 1))  # right and bottom only
        self.resample = nn.Sequential(pad, nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Map ``[B, C, T, H, W]`` to ``[B, C, T', H/2, W/2]``.

        In time, ``T'`` is ``(T + 1) / 2`` for the chunk that begins the clip, then ``T / 2``.
        """
        x = clip_of(self.resample(frames_of(x)), len(x))
        if self.time_conv is None:
            return x
        if not cache.at_start:
            return self.time_conv(cache.prepend(self.time_conv, x, 1))
        cache.remember(self.time_conv, x, 1)
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module, Causal):
    """Double height and width, halve channels and, with ``temporal``, double later frames."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        # The reference repeats pixels in fp32 and casts back. Copies need no such care.
        nearest = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(nearest, nn.Conv2d(dim, dim // 2, 3, padding=1))
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Map ``[B, C, T, H, W]`` to ``[B, C/2, T', 2H, 2W]``.

        In time, ``T'`` is ``2T - 1`` for the chunk that begins the clip, then ``2T``.
        """
        if self.time_conv is not None:
            alone = 1 if cache.at_start else 0
            first, later = x[:, :, :alone], x[:, :, alone:]
            if later.shape[2]:
                # [B, 2C, T, H, W] -> [B, C, 2T, H, W]: both halves of the channels interleave
                pairs = torch.unflatten(self.time_conv(later, cache), 1, (2, -1))
                x = torch.cat([first, pairs.movedim(1, 3).flatten(2, 3)], dim=2)
        return clip_of(self.resample(frames_of(x)), len(x))


def frames_of(x: Tensor) -> Tensor:
    """``[B, C, T, H, W]`` as pictures ``[B*T, C, H, W]``."""
    return x.transpose(1, 2).flatten(0, 1)


def clip_of(frames: Tensor, batch: int) -> Tensor:
    """Pictures ``[B*T, C, H, W]`` as ``[B, C, T, H, W]``."""
    return torch.unflatten(frames, 0, (batch, -1)).transpose(1, 2)


def _middle(dim: int) -> CausalSequential:
    return CausalSequential(ResidualBlock(dim, dim), FrameAttention(dim), ResidualBlock(dim, dim))


def _head(dim: int, out_dim: int) -> CausalSequential:
    return CausalSequential(RMSNorm(dim), nn.SiLU(), CausalConv3d(dim, out_dim))


def _encoder(size: VaeSize) -> CausalSequential:
    """Picture ``[B, 3, T, H, W]`` to mean and log-variance, ``[B, 2 z_dim, ...]``."""
    dim = size.dim
    layers: list[nn.Module] = []
    for level, mult in enumerate(size.dim_mult):
        for _ in range(size.res_blocks):
            layers.append(ResidualBlock(dim, size.dim * mult))
            dim = size.dim * mult
        if level < len(size.dim_mult) - 1:
            layers.append(Downsample(dim, size.temporal_downsample[level]))
    parts = OrderedDict[str, nn.Module](
        conv1=CausalConv3d(3, size.dim),
        downsamples=CausalSequential(*layers),
        middle=_middle(dim),
        head=_head(dim, 2 * size.z_dim),
    )
    return CausalSequential(parts)


def _decoder(size: VaeSize) -> CausalSequential:
    """Latents ``[B, z_dim, T, H, W]`` to a picture: the encoder's levels in reverse."""
    widest = dim = size.dim * size.dim_mult[-1]
    layers: list[nn.Module] = []
    for level in reversed(range(len(size.dim_mult))):
        for _ in range(size.res_blocks + 1):
            layers.append(ResidualBlock(dim, size.dim * size.dim_mult[level]))
            dim = size.dim * size.dim_mult[level]
        if level > 0:
            layers.append(Upsample(dim, size.temporal_downsample[level - 1]))
            dim //= 2
    parts = OrderedDict[str, nn.Module](
        conv1=CausalConv3d(size.z_dim, widest),
        middle=_middle(widest),
        upsamples=CausalSequential(*layers),
        head=_head(dim, 3),
    )
    return CausalSequential(parts)


def _run(network: nn.Module, x: Tensor, chunks: list[int]) -> Tensor:
    """Send ``x`` through ``network`` in consecutive chunks of so many frames."""
    cache = CausalCache(keep=len(chunks) > 1)
    outputs = []
    for chunk in torch.split(x, chunks, dim=2):
        outputs.append(network(chunk, cache))
        cache.at_start = False
    return torch.cat(outputs, dim=2)


class WanVae(nn.Module):
    """Video to latents and back: 8x smaller in space, 4x in time with the first frame alone.

    Both directions take a clip whole, or ``chunked``: one latent frame at a time, which needs
    memory for four frames and the layers' histories, however long the clip. The results agree to
    rounding. Calls share no state; the state dict has the names of the original Wan weights.

    Attributes:
        spatial_factor: pixels along a side of a latent pixel (8).
        temporal_factor: frames in a latent frame after the first (4).
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, size: VaeSize) -> None:
        super().__init__()
        self.size = size
        self.spatial_factor = size.spatial_factor
        self.temporal_factor = size.temporal_factor
        self.encoder = _encoder(size)
        self.conv1 = nn.Conv3d(2 * size.z_dim, 2 * size.z_dim, 1)
        self.conv2 = nn.Conv3d(size.z_dim, size.z_dim, 1)
        self.decoder = _decoder(size)
        published = size.z_dim == len(LATENT_MEAN)
        mean = LATENT_MEAN if published else (0.0,) * size.z_dim
        std = LATENT_STD if published else (1.0,) * size.z_dim
        for name, values in (("latent_mean", mean), ("latent_std", std)):
            # On the CPU even where the model is built on the meta device: no weights file has them
            statistic = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(name, statistic.view(-1, 1, 1, 1), persistent=False)

    def encode(self, picture: Tensor, *, chunked: bool = False) -> Tensor:
        """Encode a clip: the posterior mean, normalised to ``(mu - mean) / std`` a channel.

        Args:
            picture: ``[B, 3, T, H, W]`` in [-1, 1], dtype of the weights; ``T`` is ``4n + 1``,
                ``H`` and ``W`` are multiples of 8.
            chunked: encode 1, 4, 4, ... frames at a time.

        Returns:
            Latents ``[B, z_dim, (T - 1) / 4 + 1, H / 8, W / 8]``, dtype of ``picture``.

        Raises:
            UsageError: ``picture`` has another shape, or is not floating point.
        """
        check_picture(picture, self.size)
        frames, group = picture.shape[2], self.temporal_factor
        chunks = [1] + [group] * (frames // group) if chunked else [frames]
        mu = self.conv1(_run(self.encoder, picture, chunks)).chunk(2, dim=1)[0]
        mean, std = self._statistics(mu)
        return (mu - mean) / std

    def decode(self, latents: Tensor, *, chunked: bool = False) -> Tensor:
        """Decode latents to a clip.

        Args:
            latents: ``[B, z_dim, T', h, w]`` as :meth:`encode` returns them.
            chunked: decode one latent frame at a time.

        Returns:
            Picture ``[B, 3, 4 (T' - 1) + 1, 8h, 8w]``, not clamped, dtype of ``latents``.

        Raises:
            UsageError: ``latents`` has another shape, or is not floating point.
        """
        check_latents(latents, self.size)
        frames = latents.shape[2]
        chunks = [1] * frames if chunked else [frames]
        mean, std = self._statistics(latents)
        return _run(self.decoder, self.conv2(latents * std + mean), chunks)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, in the dtype and on the device of a tensor.

        Loaded weights may have replaced every parameter without :meth:`to` having seen these.
        """
        return self.latent_mean.to(like), self.latent_std.to(like)


def check_picture(picture: Tensor, size: VaeSize) -> None:
    """Raise UsageError unless ``picture`` is a clip that an encoder of that size takes."""
    shape, space, group = tuple(picture.shape), size.spatial_factor, size.temporal_factor
    if len(shape) != 5 or shape[1] != 3 or 0 in shape or not picture.is_floating_point():
        raise UsageError(
            f"cannot encode a {picture.dtype} tensor of shape {shape}: "
            "need a floating-point clip [batch, 3, frames, height, width] in [-1, 1]"
        )
    if shape[2] % group != 1:
        raise UsageError(
            f"cannot encode {shape[2]} frames: need {group}n + 1; repeat the last frame up to "
            f"{shape[2] + (1 - shape[2]) % group}"
        )
    if shape[3] % space or shape[4] % space:
        raise UsageError(
            f"cannot encode {shape[3]}x{shape[4]} pixels: height and width must be multiples "
            f"of {space}; pad to {shape[3] + -shape[3] % space}x{shape[4] + -shape[4] % space}"
        )


def check_latents(latents: Tensor, size: VaeSize) -> None:
    """Raise UsageError unless ``latents`` are what a decoder of that size takes."""
    shape, channels = tuple(latents.shape), size.z_dim
    if len(shape) != 5 or shape[1] != channels or 0 in shape or not latents.is_floating_point():
        raise UsageError(
            f"cannot decode a {latents.dtype} tensor of shape {shape}: "
            f"need floating-point latents [batch, {channels}, frames, height, width]"
        )
