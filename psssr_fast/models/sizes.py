"""Every model this project knows by name, and the numbers that make it."""

from dataclasses import dataclass, replace

from psssr_fast.config import Windows


@dataclass(frozen=True)
class DitSize:
    """A diffusion transformer.

    Attributes:
        dim: width of the residual stream.
        ffn_dim: width inside the feed-forward network.
        heads: attention heads; ``dim / heads`` must be even.
        layers: blocks of the base.
        kept_blocks: base blocks the draft is made of; the base's feature ``kept_blocks[j]`` (the
            input of that block) goes into draft block ``j``.
        in_channels: latent channels of the input and of the condition together.
        out_channels: latent channels of the velocity.
        text_dim: width of the prompt's embedding; 0 builds a model without cross-attention.
        freq_dim: length of the sinusoidal timestep embedding.
        patch: latent frames, rows and columns of one token.
        attention_window: tokens (time, height, width) that see each other; ``None`` is the whole
            clip. Every second block shifts its windows by half.
        eps: of every normalisation.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    heads: int = 12
    layers: int = 30
    kept_blocks: tuple[int, ...] = tuple(range(2, 30, 3))
    in_channels: int = 32
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    attention_window: tuple[int, int, int] | None = None
    eps: float = 1e-6


@dataclass(frozen=True)
class VaeSize:
    """The Wan 3D causal VAE: 8x smaller in space, 4x in time (first frame alone).

    Attributes:
        dim: channels of the first level.
        z_dim: latent channels.
        dim_mult: channel multiplier of each level.
        res_blocks: residual blocks of each encoder level (a decoder level has one more).
        temporal_downsample: whether each step down the levels also halves time.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)

    @property
    def spatial_factor(self) -> int:
        """Pixels along a side of a latent pixel."""
        return 1 << (len(self.dim_mult) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames in a latent frame after the first."""
        return 1 << sum(self.temporal_downsample)


@dataclass(frozen=True)
class CodecSize:
    """The small codec of ``nano``: 8x smaller in space, frame by frame.

    Attributes:
        dim: channels at a quarter of the output resolution.
        z_dim: latent channels.
        encoder_blocks: residual blocks that read the picture (run once a frame).
        decoder_blocks: residual blocks that draw the residual (run once a decode).
    """

    dim: int = 48
    z_dim: int = 16
    encoder_blocks: int = 4
    decoder_blocks: int = 2


@dataclass(frozen=True)
class ModelSize:
    """A whole model: DiT, codec, and the windows it is run with unless told otherwise."""

    name: str
    dit: DitSize
    codec: VaeSize | CodecSize
    windows: Windows


WAN_1_3B = ModelSize("wan2.1-1.3b", DitSize(), VaeSize(), Windows())
NANO = ModelSize(
    "nano",
    DitSize(
        dim=128,
        ffn_dim=384,
        heads=4,
        layers=3,
        kept_blocks=(2,),
        text_dim=0,
        attention_window=(4, 8, 8),
    ),
    CodecSize(),
    Windows(frames=16, overlap_frames=1, overlap_pixels=64),
)
SIZES = {size.name: size for size in (WAN_1_3B, NANO)}


def kept_blocks(layers: int, drafted: int) -> tuple[int, ...]:
    """The base blocks a draft of ``drafted`` blocks keeps: the last of each group, evenly spread.

    For 30 and 10 these are 2, 5, ..., 29 (the release's uniform rule with ``k_select`` 1.5 or 3).

    Raises:
        ValueError: ``layers`` is not a multiple of ``drafted``.
    """
    if drafted < 1 or layers % drafted:
        raise ValueError(f"a draft of {drafted} blocks cannot be spread evenly over {layers}")
    group = layers // drafted
    return tuple(range(group - 1, layers, group))


def resized(size: ModelSize, dit: DitSize, codec: VaeSize | CodecSize) -> ModelSize:
    """The same kind of model with other dimensions (reduced checkpoints, tests)."""
    return replace(size, name=f"{size.name}-custom", dit=dit, codec=codec)
