"""The parts of a model: which there must be, whether they fit together, what size they make.

Works on names and shapes only, so a model of any size is checked without reading a weight. Names
are ours here (those of the original Wan release); :mod:`psssr_fast.checkpoint` translates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from torch import Tensor

from psssr_fast.errors import ModelError
from psssr_fast.models.prompt import PROMPT_KEY, TEXT_LENGTH
from psssr_fast.models.sizes import SIZES, WAN_1_3B, ModelSize, kept_blocks, resized
from psssr_fast.weights_files import (
    MAX_DIMENSION,
    Shape,
    WeightFile,
    check_tensor,
    is_file,
    read_json,
    read_tensors,
    refuse_outside,
    shown,
)
from psssr_fast.weights_layout import (
    codec_shapes,
    count_blocks,
    dimension,
    dit_shapes,
    infer_dit,
    infer_vae,
    lora_shapes,
)

BUNDLE_SECTIONS = ("base", "draft", "codec")


class Kind(StrEnum):
    """What a weights file holds."""

    FOUNDATION = "Wan2.1 DiT"
    VAE = "Wan2.1 VAE"
    BASE = "PS-SR base"
    DRAFT = "PS-SR draft"
    PROMPT = "prompt embedding"
    BUNDLE = "psssr_fast bundle"
    UNKNOWN = "not recognised"


_ORIGINS = {
    Kind.FOUNDATION: (
        "Wan2.1-T2V-1.3B DiT (diffusion_pytorch_model.safetensors of Wan-AI/Wan2.1-T2V-1.3B on"
        " Hugging Face, or transformer/ of Wan-AI/Wan2.1-T2V-1.3B-Diffusers)"
    ),
    Kind.VAE: (
        "Wan2.1 VAE (vae/ of Wan-AI/Wan2.1-T2V-1.3B-Diffusers on Hugging Face, or Wan2.1_VAE.pth"
        " of Wan-AI/Wan2.1-T2V-1.3B through psssr models convert)"
    ),
    Kind.BASE: "PS-SR base (base.safetensors of the PS-SR release, github.com/HiDream-ai/PS-SR)",
    Kind.DRAFT: "PS-SR draft (draft.safetensors of the PS-SR release, github.com/HiDream-ai/PS-SR)",
}


@dataclass(frozen=True)
class Part:
    """One part of a model in a file.

    Attributes:
        kind: which part.
        layout: whose names the file uses: ``"original"``, ``"diffusers"``, or ours: ``""``.
        file: where it is.
        names: our name of each tensor to its name in the file.
    """

    kind: Kind
    layout: str
    file: WeightFile
    names: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor, by our name."""
        return {ours: self.file.tensors[theirs].shape for ours, theirs in self.names.items()}

    @property
    def where(self) -> str:
        """The part as errors call it."""
        return f"{shown(self.file.path)} ({self.kind})"

    def read(self) -> dict[str, Tensor]:
        """All tensors by our names, memory-mapped; NaN and infinity are refused."""
        ours = {theirs: ours for ours, theirs in self.names.items()}
        return {ours[name]: tensor for name, tensor in read_tensors(self.file, ours)}


@dataclass(frozen=True)
class Assembly:
    """Parts that fit together.

    Attributes:
        size: of the whole model.
        base: the foundation model, or a whole base if there is no ``lora``.
        lora: what turns the foundation model into the base.
    """

    size: ModelSize
    base: Part
    lora: Part | None
    draft: Part
    codec: Part
    prompt: Part | None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that is there."""
        every = (self.base, self.lora, self.draft, self.codec, self.prompt)
        return tuple(part for part in every if part is not None)


def assemble(parts: Sequence[Part], source: Path, pickles: Sequence[Path] = ()) -> Assembly:
    """Choose the parts of one model and check every name, shape and dtype.

    Args:
        parts: what was found.
        source: the file or directory they are in; a ``config.json`` there or beside a part may
            say ``num_heads`` (or ``num_attention_heads``) and ``k_select``.
        pickles: files that might hold a missing part and are not read.

    Raises:
        ModelError: a part is missing, doubled, incomplete or of another size than the others; the
            message names the file and the key.
    """
    chosen: dict[Kind, Part] = {}
    for part in parts:
        if part.kind is Kind.UNKNOWN:
            continue
        if part.kind in chosen:
            raise ModelError(
                f"two files hold the {part.kind}: {shown(chosen[part.kind].file.path)} and"
                f" {shown(part.file.path)}; leave one in {shown(source)}"
            )
        chosen[part.kind] = part
        for theirs in part.names.values():
            check_tensor(part.file, theirs)
    prompt = chosen.pop(Kind.PROMPT, None)
    if Kind.BUNDLE in chosen:
        if len(chosen) > 1:
            other = next(part for kind, part in chosen.items() if kind is not Kind.BUNDLE)
            raise ModelError(
                f"{shown(source)}: a whole model in {chosen[Kind.BUNDLE].where}, and"
                f" {other.where} beside it; leave one of the two"
            )
        assembly = _open_bundle(chosen[Kind.BUNDLE], prompt)
    else:
        missing = [kind for kind in _ORIGINS if kind not in chosen]
        if missing:
            raise ModelError(_incomplete(missing, parts, source, pickles))
        assembly = _fit_together(chosen, prompt, source)
    _check_prompt(assembly)
    return assembly


def _incomplete(
    missing: Iterable[Kind], parts: Sequence[Part], source: Path, pickles: Sequence[Path]
) -> str:
    """What is missing, what was found, and where to get the rest."""
    found = ", ".join(f"{part.kind} in {part.file.path.name}" for part in parts) or "nothing"
    wanted = "; ".join(_ORIGINS[kind] for kind in missing)
    message = f"{shown(source)}: incomplete model: missing {wanted}; found: {shown(found, 1000)}"
    if pickles:
        names = ", ".join(path.name for path in pickles)
        message += (
            f"; pickles are not read, for each that holds a part run: psssr models convert FILE"
            f" ({shown(names)})"
        )
    return message


def _fit_together(chosen: Mapping[Kind, Part], prompt: Part | None, source: Path) -> Assembly:
    """The four published parts as one model."""
    foundation, vae = chosen[Kind.FOUNDATION], chosen[Kind.VAE]
    lora, draft = chosen[Kind.BASE], chosen[Kind.DRAFT]
    size = infer_dit(
        foundation.shapes,
        heads=_heads(foundation, source),
        kept=_kept(foundation, draft, source),
        where=foundation.where,
    )
    check_shapes(foundation, dit_shapes(size, draft=False))
    # PS-SR feeds the model the state and the low-resolution latents: twice the channels
    dit = replace(size, in_channels=2 * size.in_channels)
    matrix = min((name for name in lora.shapes if ".lora_A." in name), default="lora_A.weight")
    rank = dimension(lora.shapes, matrix, 0, lora.where)
    check_shapes(lora, lora_shapes(dit, rank))
    check_shapes(draft, dit_shapes(dit, draft=True))
    codec = infer_vae(vae.shapes, where=vae.where)
    check_shapes(vae, codec_shapes(codec))
    if not codec.z_dim == size.in_channels == size.out_channels:
        raise ModelError(
            f"{foundation.where} takes {size.in_channels} latent channels and gives"
            f" {size.out_channels}; {vae.where} has {codec.z_dim}"
        )
    full = dit == WAN_1_3B.dit and codec == WAN_1_3B.codec
    whole = WAN_1_3B if full else resized(WAN_1_3B, dit, codec)
    return Assembly(whole, foundation, lora, draft, vae, prompt)


def _open_bundle(bundle: Part, prompt: Part | None) -> Assembly:
    """The sections of a bundle as parts."""
    name = bundle.file.metadata.get("model", "")
    if name not in SIZES:
        known = ", ".join(SIZES)
        raise ModelError(f"{bundle.where}: holds model {shown(name)!r}; known are: {known}")
    sections: dict[str, dict[str, str]] = {section: {} for section in BUNDLE_SECTIONS}
    for theirs in bundle.names.values():
        section, _, ours = theirs.partition(".")
        if section not in sections:
            raise ModelError(f"{bundle.where}: unexpected key {shown(theirs)}")
        sections[section][ours] = theirs
    base, draft, codec = (replace(bundle, names=sections[name]) for name in BUNDLE_SECTIONS)
    expected = bundle_shapes(SIZES[name])
    for section, part in zip(BUNDLE_SECTIONS, (base, draft, codec), strict=True):
        check_shapes(part, expected[section], section=f"{section}.")
    return Assembly(SIZES[name], base, None, draft, codec, prompt)


def bundle_shapes(size: ModelSize) -> dict[str, dict[str, Shape]]:
    """What each section of a bundle of this size holds."""
    base, draft = dit_shapes(size.dit, draft=False), dit_shapes(size.dit, draft=True)
    return {"base": base, "draft": draft, "codec": codec_shapes(size.codec)}


def check_shapes(part: Part, expected: Mapping[str, Shape], section: str = "") -> None:
    """Refuse a part whose names and shapes are not exactly these.

    Raises:
        ModelError: naming the first key that is missing, unexpected or misshapen.
    """
    shapes = part.shapes
    missing = sorted(expected.keys() - shapes.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{part.where}: missing key {section}{missing[0]}{more}")
    extra = sorted(shapes.keys() - expected.keys())
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise ModelError(f"{part.where}: unexpected key {shown(part.names[extra[0]])}{more}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ModelError(
                f"{part.where}: {shown(part.names[name])} has shape {list(shapes[name])};"
                f" needed {list(shape)}"
            )


def _heads(foundation: Part, source: Path) -> int | None:
    """The number of heads that a configuration gives."""
    names = ("num_heads", "num_attention_heads")
    heads, path = _configured(names, (foundation.file.path.parent, source))
    if heads is not None and (type(heads) is not int or not 1 <= heads <= MAX_DIMENSION):
        raise ModelError(
            f"{shown(path)}: num_heads is {shown(heads)}; needed a whole number, 1 to"
            f" {MAX_DIMENSION}"
        )
    return heads


def _kept(foundation: Part, draft: Part, source: Path) -> tuple[int, ...]:
    """The base blocks that the draft keeps: the draft's file tells how many."""
    layers = count_blocks(foundation.shapes, "blocks.")
    drafted = count_blocks(draft.shapes, "blocks.")
    try:
        kept = kept_blocks(layers, drafted)
    except ValueError as error:
        raise ModelError(f"{draft.where}: {error}") from None
    step, path = _configured(("k_select",), (draft.file.path.parent, source))
    if step is None:
        return kept
    if not isinstance(step, int | float) or not 1 <= step <= layers:
        raise ModelError(f"{shown(path)}: k_select is {shown(step)}; needed 1 to {layers}")
    if tuple(block for block in range(layers) if block % step == step - 1) != kept:
        raise ModelError(
            f"{shown(path)}: k_select {step} does not give the {drafted} blocks of {draft.where}"
        )
    return kept


def _configured(names: Iterable[str], folders: Iterable[Path]) -> tuple[Any, Path]:
    """The first of ``names`` that a ``config.json`` in one of ``folders`` has, and that file."""
    path = Path("config.json")
    for folder in dict.fromkeys(folders):
        path = folder / "config.json"
        if is_file(path):
            refuse_outside(path, folder)
            table = read_json(path)
            for name in names:
                if table.get(name) is not None:
                    return table[name], path
    return None, path


def _check_prompt(assembly: Assembly) -> None:
    """A prompt must have the width the model reads."""
    if assembly.prompt is None:
        return
    shape = assembly.prompt.shapes[PROMPT_KEY]
    width = assembly.size.dit.text_dim
    if width == 0:
        raise ModelError(f"{assembly.prompt.where}: {assembly.size.name} takes no prompt")
    if len(shape) != 2 or not shape[0] <= TEXT_LENGTH or shape[1] != width:
        raise ModelError(
            f"{assembly.prompt.where}: {PROMPT_KEY} has shape {list(shape)};"
            f" needed [1 to {TEXT_LENGTH}, {width}]"
        )
