"""Trained weights in the layouts that :mod:`psssr_fast.checkpoint` loads."""

import re
from pathlib import Path

import torch
from torch import Tensor

from psssr_fast.checkpoint import save_bundle
from psssr_fast.training.lora import lora_state, merged_state
from psssr_fast.training.manifest import Manifest
from psssr_fast.training.networks import Models
from psssr_fast.training.recipe import Recipe, to_json
from psssr_fast.weights_files import write_weight_file
from psssr_fast.weights_layout import lora_shapes

_RELEASED = re.compile(r"(\.lora_[AB])\.weight$")  # peft puts the name of the adapter in between


def export(models: Models, recipe: Recipe, manifest: Manifest, folder: Path) -> list[Path]:
    """Write what was trained.

    The full size becomes ``base.safetensors`` (adapters, patch embedding and head) and, once there
    is one, ``draft.safetensors``, as the PS-SR release has them: beside Wan2.1's transformer and
    VAE they make a model. A small size becomes one bundle, in fp16.

    Args:
        models: after training.
        recipe, manifest: kept in the files, the manifest as the licences it names.
        folder: to write into.

    Returns:
        The files.

    Raises:
        OutputError: a file cannot be written.
    """
    licences = sorted({source.licence or "not recorded" for source in manifest.sources})
    about = {"recipe": to_json(recipe), "licences": "; ".join(licences)}
    if models.trains_codec:
        return [_bundle(models, recipe, about, folder)]
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    for parameter in _released_parameters(models):
        parameter.requires_grad_(True)
    base = lora_state(models.base)
    assert {name: tuple(x.shape) for name, x in base.items()} == lora_shapes(
        models.size.dit, recipe.lora_rank
    )
    written = [folder / "base.safetensors"]
    named = {_RELEASED.sub(r"\1.default.weight", name): value for name, value in base.items()}
    write_weight_file(written[0], _cast(named, dtype), about)
    if models.draft is not None:
        written.append(folder / "draft.safetensors")
        write_weight_file(written[1], _cast(models.draft.state_dict(), dtype), about)
    return written


def _released_parameters(models: Models) -> list[torch.nn.Parameter]:
    """Of the base: what the release's file holds."""
    names = (".lora_", "patch_embedding.", "head.head.")
    return [p for name, p in models.base.named_parameters() if any(n in name for n in names)]


def _bundle(models: Models, recipe: Recipe, about: dict[str, str], folder: Path) -> Path:
    """One file; a draft that was not trained yet is the pruned base."""
    if models.draft is None:
        models.make_draft()
        about = {**about, "draft": "pruned from the base, not trained"}
    assert models.draft is not None
    path = folder / f"{recipe.size}.safetensors"
    sections = (merged_state(models.base), models.draft.state_dict())
    base, draft = (_cast(section, torch.float16) for section in sections)
    codec = _cast(models.codec_module.state_dict(), torch.float16)
    save_bundle(path, recipe.size, base, draft, codec, about)
    return path


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().to(dtype).contiguous() for name, tensor in state.items()}
