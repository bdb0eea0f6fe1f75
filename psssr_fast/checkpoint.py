"""Weights files to state dicts. The only file that knows the names other projects give to weights.

A model is found by what its files hold, not by what they are called: the Wan2.1 DiT and VAE (with
original or diffusers names), PS-SR's ``base`` (LoRA, patch embedding and head, which turn that DiT
into the base), PS-SR's ``draft`` (a whole, smaller DiT), and a prompt embedding. A bundle of this
project holds base, draft and codec in one file.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from psssr_fast.errors import ModelError, UsageError
from psssr_fast.models.prompt import PROMPT_KEY, pad_prompt
from psssr_fast.models.sizes import SIZES, ModelSize
from psssr_fast.weights_files import (
    Broken,
    Scan,
    Shape,
    WeightFile,
    read_weight_file,
    scan_directory,
    shown,
    write_weight_file,
)
from psssr_fast.weights_parts import BUNDLE_SECTIONS, Kind, Part, assemble, bundle_shapes
from psssr_fast.weights_source import find_source

BUNDLE_FORMAT = "psssr_fast"

_NESTED_PREFIXES = ("model.", "model_state.")  # around every name of a file, or around none

# The first row that matches any name of a file says what the file is.
_MARKERS = (
    (Kind.BASE, "original", re.compile(r"\.lora_[AB]\.")),
    (Kind.DRAFT, "original", re.compile(r"^fc_layers\.\d+\.")),
    (Kind.FOUNDATION, "diffusers", re.compile(r"^(condition_embedder|blocks\.\d+\.attn[12])\.")),
    (Kind.FOUNDATION, "original", re.compile(r"^blocks\.\d+\.(self_attn|cross_attn)\.")),
    (Kind.VAE, "diffusers", re.compile(r"^(encoder\.down_blocks|decoder\.up_blocks)\.")),
    (Kind.VAE, "original", re.compile(r"^(encoder\.downsamples|decoder\.upsamples)\.")),
)

# diffusers -> original; the first rule that matches the start of a name is applied.
_DIT_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
        (r"condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
        (r"condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
        (r"condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
        (r"condition_embedder\.time_proj\.", "time_projection.1."),
        (r"proj_out\.", "head.head."),
        (r"scale_shift_table$", "head.modulation"),
        (r"(blocks\.\d+\.)scale_shift_table$", r"\1modulation"),
        (r"(blocks\.\d+\.)norm2\.", r"\1norm3."),  # the affine norm before cross-attention
        (r"(blocks\.\d+\.)ffn\.net\.0\.proj\.", r"\1ffn.0."),
        (r"(blocks\.\d+\.)ffn\.net\.2\.", r"\1ffn.2."),
        (r"(blocks\.\d+\.)attn1\.to_([qkv])\.", r"\1self_attn.\2."),
        (r"(blocks\.\d+\.)attn1\.to_out\.0\.", r"\1self_attn.o."),
        (r"(blocks\.\d+\.)attn1\.norm_", r"\1self_attn.norm_"),
        (r"(blocks\.\d+\.)attn2\.to_([qkv])\.", r"\1cross_attn.\2."),
        (r"(blocks\.\d+\.)attn2\.to_out\.0\.", r"\1cross_attn.o."),
        (r"(blocks\.\d+\.)attn2\.norm_", r"\1cross_attn.norm_"),
    )
)

# diffusers -> original; every rule is applied.
_VAE_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
        (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
        (r"\.mid_block\.resnets\.0\.", ".middle.0."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.1\.", ".middle.2."),
        (r"^encoder\.down_blocks\.", "encoder.downsamples."),
    )
)
# The decoder's levels are nested in diffusers, and one list in the original.
_VAE_NESTED = re.compile(r"^decoder\.up_blocks\.(\d{1,3})\.(?:resnets\.(\d{1,3})|upsamplers\.0)\.")
_VAE_RESIDUAL = re.compile(
    r"(\.(?:downsamples|middle|upsamples)\.\d+)\.(norm1|conv1|norm2|conv2|conv_shortcut)\."
)
_VAE_RESIDUAL_NAMES = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model, ready for its modules.

    Attributes:
        size: dimensions of all parts.
        base: state dict of the base transformer, LoRA merged.
        draft: state dict of the draft transformer.
        codec: state dict of the VAE, or of ``nano``'s codec.
        prompt: the prompt's embedding ``[512, text_dim]``, if a file of it was there.
        source: what the user asked for.
        id: tells weights apart: SHA-256 over name, dtype, shape, minimum and maximum of every
            tensor. The same for the same weights under other names or in other files. For the
            hash of the files' bytes see :func:`psssr_fast.weights_report.verify`.

    Tensors are those of the files in dtype, mapped into memory rather than read where unchanged.
    """

    size: ModelSize
    base: dict[str, Tensor]
    draft: dict[str, Tensor]
    codec: dict[str, Tensor]
    prompt: Tensor | None
    source: str
    id: str


def load_checkpoint(
    source: str | Path, *, offline: bool = False, revision: str | None = None
) -> Checkpoint:
    """Load all weights of a model.

    Args:
        source: ``"nano"``, a directory, a bundle file, or a repository ``owner/name``.
        offline: never touch the network; a repository must be in the Hugging Face cache.
        revision: branch, tag or commit of a repository.

    Raises:
        ModelError: something is missing, damaged, unsafe, or does not fit; in one line that names
            the file and the key.
        UsageError: a revision of something that is not a repository.
    """
    path = find_source(source, offline=offline, revision=revision)
    found = find_parts(path)
    if found.broken:
        raise found.broken[0].error
    assembly = assemble(found.parts, path, found.pickles)
    base = assembly.base.read()
    if assembly.lora is not None:
        base = merge_lora(base, assembly.lora.read())
    draft, codec = assembly.draft.read(), assembly.codec.read()
    prompt = None if assembly.prompt is None else assembly.prompt.read()
    identity = _identity({"base": base, "draft": draft, "codec": codec, "prompt": prompt or {}})
    return Checkpoint(
        size=assembly.size,
        base=base,
        draft=draft,
        codec=codec,
        prompt=None if prompt is None else pad_prompt(prompt[PROMPT_KEY]),
        source=str(source),
        id=identity,
    )


@dataclass(frozen=True)
class Found:
    """What a file or directory holds: recognised files first, in the order of their names."""

    parts: tuple[Part, ...]
    broken: tuple[Broken, ...]
    pickles: tuple[Path, ...]


def find_parts(path: Path) -> Found:
    """Recognise every weights file in a directory, or the one file that ``path`` is.

    Raises:
        ModelError: the directory cannot be listed, or two tensors of a file have one name.
    """
    scan = scan_directory(path) if path.is_dir() else Scan((read_weight_file(path),), (), ())
    parts = sorted((recognise(file) for file in scan.files), key=lambda part: part.file.path)
    return Found(tuple(parts), scan.broken, scan.pickles)


def recognise(file: WeightFile) -> Part:
    """Tell what a file holds by the names in it, and give every tensor our name.

    Raises:
        ModelError: two tensors would get the same name.
    """
    if file.metadata.get("format") == BUNDLE_FORMAT and "model" in file.metadata:
        return Part(Kind.BUNDLE, "", file, {name: name for name in file.tensors})
    if set(file.tensors) == {PROMPT_KEY}:
        return Part(Kind.PROMPT, "", file, {PROMPT_KEY: PROMPT_KEY})
    kind, layout, ours = original_names(file.tensors)
    names: dict[str, str] = {}
    for theirs, name in ours.items():
        if name in names:
            raise ModelError(
                f"{shown(file.path)}: {shown(names[name])} and {shown(theirs)} are both {name}"
            )
        names[name] = theirs
    return Part(kind, layout, file, names)


def original_names(names: Iterable[str]) -> tuple[Kind, str, dict[str, str]]:
    """What tensors of these names are, whose names they are, and each one's original name."""
    bare = {name: name for name in names}
    for prefix in _NESTED_PREFIXES * 2:  # one may be inside the other
        if bare and all(name.startswith(prefix) for name in bare.values()):
            bare = {name: short.removeprefix(prefix) for name, short in bare.items()}
    bare = {name: short.removeprefix("diffusion_model.") for name, short in bare.items()}
    matching = (
        (kind, layout)
        for kind, layout, marker in _MARKERS
        if any(marker.search(short) for short in bare.values())
    )
    kind, layout = next(matching, (Kind.UNKNOWN, ""))
    if kind is Kind.BASE:
        adapter = re.compile(r"(\.lora_[AB])\.default\.weight$")
        bare = {name: adapter.sub(r"\1.weight", short) for name, short in bare.items()}
    elif layout == "diffusers" and kind is Kind.FOUNDATION:
        bare = {name: _dit_original(short) for name, short in bare.items()}
    elif layout == "diffusers":
        bare = _vae_original(bare)
    return kind, layout, bare


def _dit_original(name: str) -> str:
    for pattern, replacement in _DIT_RULES:
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return name


def _vae_original(names: Mapping[str, str]) -> dict[str, str]:
    matches = [match for name in names.values() if (match := _VAE_NESTED.match(name))]
    per_level = len({match[2] for match in matches if match[2]}) + 1  # blocks and the upsampler

    def flat(match: re.Match[str]) -> str:
        place = int(match[2]) if match[2] else per_level - 1
        return f"decoder.upsamples.{int(match[1]) * per_level + place}."

    def residual(match: re.Match[str]) -> str:
        return f"{match[1]}.{_VAE_RESIDUAL_NAMES[match[2]]}."

    originals = {}
    for theirs, name in names.items():
        name = _VAE_NESTED.sub(flat, name)
        for pattern, replacement in _VAE_RULES:
            name = pattern.sub(replacement, name)
        originals[theirs] = _VAE_RESIDUAL.sub(residual, name)
    return originals


def merge_lora(weights: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base: ``W + B A`` where there is a LoRA, other tensors of ``lora`` in place of ours.

    The release computes ``W.to(bf16) + B A`` with every step in bf16; here the sum is in fp32 (fp64
    for fp64 weights) and rounded once, to the dtype of ``W``.

    Args:
        weights: the foundation model's state dict.
        lora: ``<module>.lora_A.weight`` ``[rank, in]`` and ``<module>.lora_B.weight``
            ``[out, rank]`` (scale 1), and whole tensors.
    """
    merged = dict(weights)
    for name, tensor in lora.items():
        module, found, side = name.partition(".lora_")
        if not found:
            merged[name] = tensor
        elif side == "A.weight":
            key = f"{module}.weight"
            weight = merged[key]
            wide = torch.promote_types(weight.dtype, torch.float32)
            left = lora[f"{module}.lora_B.weight"].to(wide)
            total = weight.to(wide, copy=True).addmm_(left, tensor.to(wide))
            merged[key] = total.to(weight.dtype)
    return merged


def _identity(sections: Mapping[str, Mapping[str, Tensor]]) -> str:
    """See :class:`Checkpoint`. Refuses what merging has driven out of a dtype's range."""
    digest = hashlib.sha256()
    for section, tensors in sorted(sections.items()):
        for name, tensor in sorted(tensors.items()):
            low, high = (float(bound) for bound in torch.aminmax(tensor))
            if not (isfinite(low) and isfinite(high)):
                raise ModelError(f"{section}: {name} overflows {tensor.dtype} once LoRA is merged")
            shape = tuple(tensor.shape)
            digest.update(f"{section}.{name} {tensor.dtype} {shape} {low!r} {high!r}\n".encode())
    return digest.hexdigest()


def state_dict_id(shapes: Mapping[str, Shape]) -> str:
    """The id by which DiffSynth (and so the PS-SR release) knows a state dict: the MD5 of its
    sorted names, each both alone and with its shape: ``name`` and ``name:d0_d1``."""
    words = [*shapes, *(f"{name}:{'_'.join(map(str, shape))}" for name, shape in shapes.items())]
    return hashlib.md5(",".join(sorted(words)).encode(), usedforsecurity=False).hexdigest()


def save_bundle(
    path: str | Path,
    size_name: str,
    base: Mapping[str, Tensor],
    draft: Mapping[str, Tensor],
    codec: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a whole model as one file that :func:`load_checkpoint` takes.

    Args:
        path: of the file; replaced if it exists.
        size_name: a key of ``SIZES``; the state dicts must be exactly of that size.
        base, draft, codec: state dicts of the three modules.
        metadata: free text to keep with the weights (how they were trained, licence).

    Raises:
        UsageError: no such size, or a state dict is not of it.
        OutputError: the file cannot be written.
    """
    if size_name not in SIZES:
        raise UsageError(f"no size {size_name!r}; known are: {', '.join(SIZES)}")
    tensors: dict[str, Tensor] = {}
    for section, state in zip(BUNDLE_SECTIONS, (base, draft, codec), strict=True):
        expected = bundle_shapes(SIZES[size_name])[section]
        for name in sorted(expected.keys() | state.keys()):
            got = tuple(state[name].shape) if name in state else "nothing"
            needed = expected.get(name, "nothing")
            if got != needed:
                raise UsageError(f"{size_name}: {section}.{name}: got {got}, needed {needed}")
        tensors |= {f"{section}.{name}": tensor for name, tensor in state.items()}
    identity = {"format": BUNDLE_FORMAT, "model": size_name}
    write_weight_file(Path(path), tensors, {**metadata, **identity})
