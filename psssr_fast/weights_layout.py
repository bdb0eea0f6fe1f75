"""Which tensors a model of a given size has, and which size a set of tensors has.

The names are those of the models in :mod:`psssr_fast.models`; shapes are all that is looked at.
"""

from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import nn

from psssr_fast.errors import ModelError
from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import CodecSize, DitSize, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.weights_files import Shape, shown

HEAD_DIM = 128  # of every published Wan model; shapes do not tell the number of heads
_ADAPTED = ("self_attn", "cross_attn"), ("q", "k", "v", "o")  # modules with a LoRA, beside ffn


def dit_shapes(size: DitSize, *, draft: bool) -> dict[str, Shape]:
    """Names and shapes of a base (or draft) transformer of this size."""
    with torch.device("meta"):
        return _shapes(Dit(size, draft=draft))


def codec_shapes(size: VaeSize | CodecSize) -> dict[str, Shape]:
    """Names and shapes of a codec of this size."""
    with torch.device("meta"):
        return _shapes(WanVae(size) if isinstance(size, VaeSize) else NanoCodec(size))


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def lora_shapes(size: DitSize, rank: int) -> dict[str, Shape]:
    """Names and shapes of the file that turns the foundation model into the PS-SR base.

    Every matrix ``[out, in]`` of attention and feed-forward has ``lora_A`` ``[rank, in]`` and
    ``lora_B`` ``[out, rank]``; the patch embedding and the head's matrix are there as a whole.
    """
    layers, projections = _ADAPTED
    modules = [f"{layer}.{name}" for layer in layers for name in projections] + ["ffn.0", "ffn.2"]
    wanted = tuple(f".{module}.weight" for module in modules)
    shapes: dict[str, Shape] = {}
    for name, shape in dit_shapes(size, draft=False).items():
        if name.startswith("blocks.") and name.endswith(wanted):
            module = name.removesuffix(".weight")
            shapes[f"{module}.lora_A.weight"] = (rank, shape[1])
            shapes[f"{module}.lora_B.weight"] = (shape[0], rank)
        elif name.startswith(("patch_embedding.", "head.head.")):
            shapes[name] = shape
    return shapes


def dimension(shapes: Mapping[str, Shape], name: str, axis: int, where: str) -> int:
    """Length of one axis of a tensor that a size is read from.

    Raises:
        ModelError: the tensor is missing or has too few axes; ``where`` names the file.
    """
    shape = shapes.get(name)
    if shape is None:
        raise ModelError(f"{where}: missing key {name}")
    if len(shape) <= axis:
        raise ModelError(f"{where}: {name} has shape {list(shape)}; needed {axis + 1} axes or more")
    return shape[axis]


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many different numbers follow ``prefix`` in ``names``."""
    return len(_indices(names, prefix, ""))


def _indices(names: Iterable[str], prefix: str, part: str) -> set[str]:
    """The numbers ``n`` of the names ``<prefix>n.<part>...``."""
    tails = (name.removeprefix(prefix).split(".", 1) for name in names if name.startswith(prefix))
    return {tail[0] for tail in tails if tail[0].isdecimal() and tail[-1].startswith(part)}


def infer_dit(
    shapes: Mapping[str, Shape], *, heads: int | None, kept: tuple[int, ...], where: str
) -> DitSize:
    """The size of a transformer with these tensors.

    Args:
        shapes: of the foundation model.
        heads: attention heads, if something says; otherwise heads of 128 channels.
        kept: the base blocks that the draft keeps.
        where: file to name in errors.

    Raises:
        ModelError: a tensor that tells a dimension is missing, or the heads do not divide.
    """
    dim = dimension(shapes, "patch_embedding.weight", 0, where)
    dimension(shapes, "patch_embedding.weight", 4, where)
    _, in_channels, *patch = shapes["patch_embedding.weight"][:5]
    out = dimension(shapes, "head.head.weight", 0, where)
    heads = heads if heads is not None else dim // HEAD_DIM if dim % HEAD_DIM == 0 else 0
    if heads < 1 or dim % heads or dim // heads % 2:
        raise ModelError(
            f"{where}: {dim} channels do not split into {heads} heads of even width;"
            " say how many there are as num_heads in a config.json beside the weights"
        )
    return DitSize(
        dim=dim,
        ffn_dim=dimension(shapes, "blocks.0.ffn.0.weight", 0, where),
        heads=heads,
        layers=count_blocks(shapes, "blocks."),
        kept_blocks=kept,
        in_channels=in_channels,
        out_channels=max(1, out // prod(patch)),
        text_dim=dimension(shapes, "text_embedding.0.weight", 1, where),
        freq_dim=dimension(shapes, "time_embedding.0.weight", 1, where),
        patch=(patch[0], patch[1], patch[2]),
    )


def infer_vae(shapes: Mapping[str, Shape], *, where: str) -> VaeSize:
    """The size of a Wan VAE with these tensors.

    Raises:
        ModelError: a tensor that tells a dimension is missing, or the levels make no sense.
    """
    prefix = "encoder.downsamples."
    blocks = _indices(shapes, prefix, "residual.")
    steps = sorted(_indices(shapes, prefix, "resample."), key=int)
    temporal = _indices(shapes, prefix, "time_conv.")
    levels = len(steps) + 1
    per_level, rest = divmod(len(blocks), levels)
    if rest or not per_level:
        raise ModelError(f"{where}: {len(blocks)} residual blocks do not fill {levels} levels")
    dim = dimension(shapes, "encoder.conv1.weight", 0, where)
    widths = [
        dimension(shapes, f"{prefix}{level * (per_level + 1)}.residual.2.weight", 0, where)
        for level in range(levels)
    ]
    if any(width % dim for width in widths):
        raise ModelError(f"{where}: level widths {shown(widths)} are no multiples of {dim}")
    return VaeSize(
        dim=dim,
        z_dim=dimension(shapes, "conv2.weight", 0, where),
        dim_mult=tuple(width // dim for width in widths),
        res_blocks=per_level,
        temporal_downsample=tuple(step in temporal for step in steps),
    )
