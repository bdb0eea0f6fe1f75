"""How much work a window is: floating-point operations and bytes, stage by stage.

Counted: convolutions, matrix products and attention, a multiplication and an addition as two, of
the plain pipeline. The operations are what ``torch.utils.flop_counter`` counts, exactly. The bytes
are the fewest that could be moved, were every layer's input, output and weight touched once and
all else fused away.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch

from psssr_fast.config import Settings
from psssr_fast.models.attention_windows import Layout
from psssr_fast.models.codec import NanoCodec, WanCodec
from psssr_fast.models.prompt import TEXT_LENGTH
from psssr_fast.models.sizes import CodecSize, DitSize, ModelSize, VaeSize
from psssr_fast.ops.frequency_update import RADIUS, RANK

Shape = tuple[int, int, int]
"""Frames, height and width."""


@dataclass(frozen=True)
class Work:
    """What a stage has to do.

    Attributes:
        flops: floating-point operations.
        bytes: moved to and from memory, at the least.
    """

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Work":
        return Work(self.flops * times, self.bytes * times)


def padded_shape(codec: VaeSize | CodecSize, shape: Shape) -> Shape:
    """The window as the networks see it: grown to what the codec takes."""
    kind = WanCodec if isinstance(codec, VaeSize) else NanoCodec
    frames, height, width = shape
    return (
        frames + (1 - frames) % kind.frames_multiple,
        height + -height % kind.pixels_multiple,
        width + -width % kind.pixels_multiple,
    )


def latent_shape(codec: VaeSize | CodecSize, padded: Shape) -> Shape:
    """The latents of a picture of shape ``padded``."""
    frames, height, width = padded
    if isinstance(codec, CodecSize):
        return frames, height // 8, width // 8
    space, time = 2 ** len(codec.temporal_downsample), 2 ** sum(codec.temporal_downsample)
    return (frames - 1) // time + 1, height // space, width // space


def window_work(
    size: ModelSize, shape: Shape, settings: Settings, element_bytes: int
) -> dict[str, Work]:
    """The work of one window by stage, all its draft steps and decodes included.

    Args:
        size: of the model.
        shape: of the window, in output pixels.
        settings: how many steps, decodes and updates there are.
        element_bytes: of the dtype the networks compute in.
    """
    padded = padded_shape(size.codec, shape)
    latents = latent_shape(size.codec, padded)
    drafts = len(settings.sampling.timesteps) - 1
    updates = drafts if settings.frequency_update.iterate else min(drafts, 1)
    return {
        "encode": encode_work(size.codec, padded, element_bytes),
        "base": dit_work(size.dit, latents, False, element_bytes),
        "draft": dit_work(size.dit, latents, True, element_bytes) * drafts,
        "decode": decode_work(size.codec, padded, element_bytes) * (1 + updates),
        "update": update_work(shape) * updates,
    }


def dit_work(
    size: DitSize,
    latents: Shape,
    draft: bool,
    element_bytes: int,
    prompt_tokens: int = TEXT_LENGTH,
) -> Work:
    """One evaluation of the base or the draft on latents of a shape."""
    count = _Counter(element_bytes)
    frames, height, width = (
        length // step for length, step in zip(latents, size.patch, strict=True)
    )
    tokens, patch, dim = frames * height * width, prod(size.patch), size.dim
    count.convolution(size.in_channels, dim, patch, tokens, read=tokens * patch)
    for inner, outer in ((size.freq_dim, dim), (dim, dim), (dim, 6 * dim)):
        count.linear(1, inner, outer)
    if size.text_dim:
        count.linear(prompt_tokens, size.text_dim, dim)
        count.linear(prompt_tokens, dim, dim)
    for index in range(len(size.kept_blocks) if draft else size.layers):
        if draft:
            count.linear(tokens, 2 * dim, dim)
        for _ in range(4):
            count.linear(tokens, dim, dim)
        windows, length = _attention_windows(size, (frames, height, width), index)
        count.attention(windows, length, length, dim)
        if size.text_dim:
            for rows in (tokens, prompt_tokens, prompt_tokens, tokens):  # q, k, v, o
                count.linear(rows, dim, dim)
            count.attention(1, tokens, prompt_tokens, dim)
        count.linear(tokens, dim, size.ffn_dim)
        count.linear(tokens, size.ffn_dim, dim)
    count.linear(tokens, dim, patch * size.out_channels)
    return count.work


def _attention_windows(size: DitSize, grid: Shape, block: int) -> tuple[int, int]:
    """How many windows attend within themselves, and the tokens of each, padding included."""
    if size.attention_window is None:
        return 1, prod(grid)
    layout = Layout.over(grid, size.attention_window, block % 2 == 1, torch.device("meta"))
    lengths = zip(grid, layout.padding, layout.window, strict=True)
    windows = prod((length + sum(added)) // window for length, added, window in lengths)
    return windows, prod(layout.window)


def encode_work(codec: VaeSize | CodecSize, padded: Shape, element_bytes: int) -> Work:
    """From a picture of shape ``padded`` to latents."""
    count = _Counter(element_bytes)
    frames, height, width = padded
    if isinstance(codec, CodecSize):
        quarter = frames * height * width // 16
        count.convolution(48, codec.dim, 9, quarter)
        for _ in range(2 * codec.encoder_blocks):
            count.convolution(codec.dim, codec.dim, 9, quarter)
        count.convolution(codec.dim, codec.z_dim, 16, quarter // 4, read=quarter)
        return count.work
    dims = [codec.dim * mult for mult in (1, *codec.dim_mult)]
    count.convolution(3, codec.dim, 27, frames * height * width)
    for level, (inner, outer) in enumerate(pairwise(dims)):
        for block in range(codec.res_blocks):
            count.residual(inner if block == 0 else outer, outer, frames * height * width)
        if level < len(codec.temporal_downsample):
            height, width = height // 2, width // 2
            positions = frames * height * width
            count.convolution(outer, outer, 9, positions, read=4 * positions)
            if codec.temporal_downsample[level]:
                frames = (frames + 1) // 2  # the first is left as it is
                count.convolution(outer, outer, 3, (frames - 1) * height * width, read=positions)
    count.middle(dims[-1], frames, height * width)
    count.convolution(dims[-1], 2 * codec.z_dim, 27, frames * height * width)
    count.convolution(2 * codec.z_dim, 2 * codec.z_dim, 1, frames * height * width)
    return count.work


def decode_work(codec: VaeSize | CodecSize, padded: Shape, element_bytes: int) -> Work:
    """From latents to the picture of shape ``padded``, once."""
    count = _Counter(element_bytes)
    if isinstance(codec, CodecSize):
        quarter = prod(padded) // 16
        count.convolution(codec.z_dim, 4 * codec.dim, 9, quarter // 4)
        for _ in range(2 * codec.decoder_blocks):
            count.convolution(codec.dim, codec.dim, 9, quarter)
        count.convolution(codec.dim, 48, 9, quarter)
        return count.work
    frames, height, width = latent_shape(codec, padded)
    outer = codec.dim * codec.dim_mult[-1]
    count.convolution(codec.z_dim, codec.z_dim, 1, frames * height * width)
    count.convolution(codec.z_dim, outer, 27, frames * height * width)
    count.middle(outer, frames, height * width)
    inner = outer
    for level in reversed(range(len(codec.dim_mult))):
        outer = codec.dim * codec.dim_mult[level]
        for block in range(codec.res_blocks + 1):
            count.residual(inner if block == 0 else outer, outer, frames * height * width)
        if level > 0:
            if codec.temporal_downsample[level - 1]:
                count.convolution(outer, 2 * outer, 3, (frames - 1) * height * width)
                frames = 2 * frames - 1  # the first is left as it is
            read = frames * height * width
            height, width, inner = 2 * height, 2 * width, outer // 2
            count.convolution(outer, inner, 9, 4 * read, read=read)
    count.convolution(outer, 3, 27, frames * height * width)
    return count.work


def update_work(shape: Shape) -> Work:
    """One frequency-domain update in fp32: the separable low-pass of two lumas; all else is less.

    It reads two pictures and writes one.
    """
    pixels = prod(shape)
    taps = 2 * RANK * (2 * RADIUS + 1)  # columns and rows
    return Work(flops=2 * 2 * taps * pixels, bytes=3 * 3 * 4 * pixels)


class _Counter:
    """Adds up layers."""

    def __init__(self, element_bytes: int) -> None:
        self.work = Work()
        self._element_bytes = element_bytes

    def _add(self, flops: int, elements: int) -> None:
        self.work += Work(flops, elements * self._element_bytes)

    def linear(self, rows: int, inner: int, outer: int) -> None:
        self._add(2 * rows * inner * outer, rows * inner + inner * outer + rows * outer)

    def convolution(
        self, inner: int, outer: int, taps: int, positions: int, read: int | None = None
    ) -> None:
        """``positions`` are of the output, ``read`` those of the input if they are others."""
        if positions:
            reads = inner * (positions if read is None else read)
            weights = inner * outer * taps
            self._add(2 * weights * positions, reads + weights + outer * positions)

    def attention(self, sequences: int, queries: int, keys: int, dim: int) -> None:
        """Over all heads together; ``dim`` is that of all."""
        elements = sequences * 2 * (queries + keys) * dim
        self._add(4 * sequences * queries * keys * dim, elements)

    def residual(self, inner: int, outer: int, positions: int) -> None:
        """A block of the VAE: two causal 3x3x3 convolutions, and a projection if sizes differ."""
        self.convolution(inner, outer, 27, positions)
        self.convolution(outer, outer, 27, positions)
        if inner != outer:
            self.convolution(inner, outer, 1, positions)

    def middle(self, dim: int, frames: int, pixels: int) -> None:
        """The lowest level of the VAE: two residual blocks around attention within each frame."""
        for _ in range(2):
            self.residual(dim, dim, frames * pixels)
        self.convolution(dim, 3 * dim, 1, frames * pixels)
        self.attention(frames, pixels, pixels, dim)
        self.convolution(dim, dim, 1, frames * pixels)
