"""Between pictures and latents: one interface for the Wan VAE and for ``nano``'s small codec."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.models.sizes import CodecSize


class Codec(Protocol):
    """What the pipeline needs of an autoencoder.

    ``frames_multiple`` and ``pixels_multiple`` say what it takes: ``frames_multiple * n + 1``
    frames (any number if it is 1), height and width multiples of ``pixels_multiple``.
    """

    frames_multiple: int
    pixels_multiple: int

    def encode(self, picture: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents of a picture ``[batch, 3, frames, height, width]`` in [-1, 1], and whatever the
        decoder wants to know about that picture."""

    def decode(
        self, latents: Tensor, condition: Tensor | None, drafts: Sequence[bool] = ()
    ) -> Tensor:
        """The pictures of ``latents``, not clamped; ``drafts`` says of each whether it is the
        draft's (none is if left out), because a codec may draw the two differently."""


class Vae(Protocol):
    """What :class:`WanCodec` needs: :class:`~psssr_fast.models.vae.WanVae`, or an engine of it."""

    def encode(self, picture: Tensor, *, chunked: bool = False) -> Tensor:
        """Latents of a picture."""

    def decode(self, latents: Tensor, *, chunked: bool = False) -> Tensor:
        """The picture of latents."""


class WanCodec:
    """The Wan VAE as a :class:`Codec`: chunk by chunk in time; its decoder needs no condition."""

    frames_multiple = 4
    pixels_multiple = 16  # the VAE's 8 times the transformer's patch of 2

    def __init__(self, vae: Vae) -> None:
        self.vae = vae

    def encode(self, picture: Tensor) -> tuple[Tensor, None]:
        """Latents ``[batch, z_dim, (frames - 1) / 4 + 1, height / 8, width / 8]``."""
        return self.vae.encode(picture, chunked=True), None

    def decode(
        self, latents: Tensor, condition: Tensor | None, drafts: Sequence[bool] = ()
    ) -> Tensor:
        """The pictures of ``latents``; nothing else is used."""
        return self.vae.decode(latents, chunked=True)


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, 3x3."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # starts as the identity
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Drawer(nn.Module):
    """The decoder of :class:`NanoCodec`: latents and features of the input to a residual."""

    def __init__(self, size: CodecSize) -> None:
        super().__init__()
        dim = size.dim
        self.from_latents = nn.Conv2d(size.z_dim, 4 * dim, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(dim) for _ in range(size.decoder_blocks)))
        self.draw = nn.Conv2d(dim, 3 * 16, 3, padding=1)
        nn.init.zeros_(self.draw.weight)
        nn.init.zeros_(self.draw.bias)  # type: ignore[arg-type]

    def forward(self, latents: Tensor, feature: Tensor) -> Tensor:
        """Residual of frames ``[frames, 48, height / 4, width / 4]``, unshuffled by 4."""
        hidden = feature + F.pixel_shuffle(self.from_latents(latents), 2)
        drawn: Tensor = self.draw(self.blocks(hidden))
        return drawn


class NanoCodec(nn.Module):
    """The small codec of ``nano``: every frame by itself, most of it at a quarter of its size.

    The encoder reads a picture (pixel-unshuffled by 4) into features and shrinks those to latents
    at an eighth. The decoder is conditioned on the features of the *resized input*: it adds the
    latents to them and draws, through a pixel-shuffle, a residual to that picture, so that a
    decoder that has learnt nothing returns the bicubic picture. There are two of them: the base's
    is to be true, the draft's to be sharp, and one that must be both is neither.
    """

    frames_multiple = 1
    pixels_multiple = 16  # the codec's 8 times the transformer's patch of 2

    def __init__(self, size: CodecSize) -> None:
        super().__init__()
        dim = size.dim
        self.read = nn.Conv2d(3 * 16, dim, 3, padding=1)
        self.encoder = nn.Sequential(*(ResidualBlock(dim) for _ in range(size.encoder_blocks)))
        self.to_latents = nn.Conv2d(dim, size.z_dim, 4, stride=2, padding=1)
        self.drawer, self.draft_drawer = Drawer(size), Drawer(size)

    def encode(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``[batch, z_dim, frames, height / 8, width / 8]`` and the condition: features
        and picture of every frame, ``[batch, frames, dim + 48, height / 4, width / 4]``."""
        frames = picture.transpose(1, 2).flatten(0, 1)
        latents, conditions = [], []
        for group in frames.split(_group(picture)):
            unshuffled = F.pixel_unshuffle(group, 4)
            feature = self.encoder(self.read(unshuffled))
            latents.append(self.to_latents(feature))
            conditions.append(torch.cat([feature, unshuffled], dim=1))
        condition = torch.cat(conditions).unflatten(0, (len(picture), -1))
        return torch.cat(latents).unflatten(0, (len(picture), -1)).transpose(1, 2), condition

    def decode(
        self, latents: Tensor, condition: Tensor | None, drafts: Sequence[bool] = ()
    ) -> Tensor:
        """The pictures ``[batch, 3, frames, height, width]`` of ``latents``, not clamped."""
        assert condition is not None
        if len(set(drafts)) > 1:
            each = zip(latents.split(1), condition.split(1), drafts, strict=True)
            return torch.cat([self.decode(latent, known, (it,)) for latent, known, it in each])
        drawer = self.draft_drawer if any(drafts) else self.drawer
        count = _group(latents, scale=8)
        pairs = zip(
            latents.transpose(1, 2).flatten(0, 1).split(count),
            condition.flatten(0, 1).split(count),
            strict=True,
        )
        pictures = []
        for latent, known in pairs:
            feature, unshuffled = known.split([known.shape[1] - 48, 48], dim=1)
            pictures.append(F.pixel_shuffle(unshuffled + drawer(latent, feature), 4))
        return torch.cat(pictures).unflatten(0, (len(latents), -1)).transpose(1, 2)


def _group(x: Tensor, scale: int = 1) -> int:
    """Frames to process at once: as many as keep the activations in a CPU's cache."""
    return max(1, 2**19 // (x.shape[-2] * x.shape[-1] * scale * scale))
