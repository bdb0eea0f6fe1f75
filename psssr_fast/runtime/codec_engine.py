"""The small codec of ``models/codec.py`` rebuilt for CPUs: the same function, rounding apart.

Convolutions are followed by ReLU or a sum. oneDNN applies either to the product while that is in
the cache, through the operators that ``torch.compile`` would use. Everything is kept channels last,
and written where the next step wants it, instead of being concatenated and brought into order.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psssr_fast.models.codec import NanoCodec, ResidualBlock, _group

LAYOUT = torch.channels_last
SHUFFLED = 48  # channels of a picture that is unshuffled by 4


class FusedNanoCodec(nn.Module):
    """:class:`~psssr_fast.models.codec.NanoCodec` as an engine; shares its weights.

    Args:
        codec: the reference; fp32 or bf16, on a CPU.
    """

    frames_multiple = NanoCodec.frames_multiple
    pixels_multiple = NanoCodec.pixels_multiple

    def __init__(self, codec: NanoCodec) -> None:
        super().__init__()
        self.codec = codec
        # Lists for our own use; the codec's are typed as any modules
        self._encoder = [_checked(block) for block in codec.encoder]
        self._drawn = {
            draft: (drawer, [_checked(block) for block in drawer.blocks])
            for draft, drawer in ((False, codec.drawer), (True, codec.draft_drawer))
        }

    def encode(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`NanoCodec.encode <psssr_fast.models.codec.NanoCodec.encode>`."""
        codec, frames = self.codec, picture.transpose(1, 2).flatten(0, 1)
        count, _, height, width = frames.shape
        shape = count, codec.read.out_channels + SHUFFLED, height // 4, width // 4
        condition = torch.empty(
            shape, dtype=frames.dtype, device=frames.device, memory_format=LAYOUT
        )
        latents, at_once = [], _group(picture)
        for group, known in zip(frames.split(at_once), condition.split(at_once), strict=True):
            feature, unshuffled = _parts(known)
            unshuffled.copy_(F.pixel_unshuffle(group, 4))
            x = _convolve(unshuffled.contiguous(memory_format=LAYOUT), codec.read)
            for block in self._encoder:
                x = _residual(x, block)
            feature.copy_(x)
            latents.append(_convolve(x, codec.to_latents))
        batch = len(picture)
        condition = condition.unflatten(0, (batch, -1))
        return torch.cat(latents).unflatten(0, (batch, -1)).transpose(1, 2), condition

    def decode(
        self, latents: Tensor, condition: Tensor | None, drafts: Sequence[bool] = ()
    ) -> Tensor:
        """As :meth:`NanoCodec.decode <psssr_fast.models.codec.NanoCodec.decode>`."""
        assert condition is not None
        pictures, at_once = [], _group(latents, scale=8)
        for index in range(len(latents)):
            drawer, blocks = self._drawn[bool(drafts) and drafts[index]]
            frames = latents[index].transpose(0, 1).split(at_once)
            for latent, known in zip(frames, condition[index].split(at_once), strict=True):
                feature, unshuffled = _parts(known)
                small = _convolve(latent.contiguous(memory_format=LAYOUT), drawer.from_latents)
                x = F.pixel_shuffle(small, 2).add_(feature)
                for block in blocks:
                    x = _residual(x, block)
                drawn = _convolve(x, drawer.draw).add_(unshuffled)
                pictures.append(F.pixel_shuffle(drawn, 4))
        return torch.cat(pictures).unflatten(0, (len(latents), -1)).transpose(1, 2)


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators are there for tensors like these."""
    supported = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return supported and torch.backends.mkldnn.is_available()


def _checked(block: nn.Module) -> ResidualBlock:
    assert isinstance(block, ResidualBlock)
    return block


def _parts(known: Tensor) -> tuple[Tensor, Tensor]:
    """Feature and unshuffled picture, views of what the decoder is told."""
    feature, unshuffled = known.split([known.shape[1] - SHUFFLED, SHUFFLED], dim=1)
    return feature, unshuffled


def _residual(x: Tensor, block: ResidualBlock) -> Tensor:
    hidden = _convolve(x, block.conv1, "relu")
    if x.is_meta:  # torch has no fake of the operator
        return torch.empty_like(x)
    conv = block.conv2
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    with_sum = torch.ops.mkldnn._convolution_pointwise.binary
    out: Tensor = with_sum(hidden, x, conv.weight, conv.bias, *geometry, "add", 1.0, None, [], "")
    return out


def _convolve(x: Tensor, conv: nn.Conv2d, then: str = "none") -> Tensor:
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    pointwise = torch.ops.mkldnn._convolution_pointwise
    out: Tensor = pointwise(x, conv.weight, conv.bias, *geometry, then, [], "")
    return out
