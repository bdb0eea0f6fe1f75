"""Everything a run needs to go on as if it had never stopped, in one safetensors file.

Noise and samples are functions of the seed and the step, so that no generator has a state to keep.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from psssr_fast.errors import ModelError, OutputError
from psssr_fast.files import make_folders
from psssr_fast.training.recipe import Recipe, to_json
from psssr_fast.weights_files import read_tensors, read_weight_file, write_weight_file

FORMAT = "psssr.training/1"
KEPT = 2  # states that stay; the last but one, in case something happens to the last


@dataclass(frozen=True)
class Place:
    """Where a run is: so many steps of a stage are done."""

    stage: str
    step: int


@dataclass(frozen=True)
class State:
    """A stored state: the place, and all tensors by name."""

    place: Place
    tensors: Mapping[str, Tensor]

    def section(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``name.``, without it."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def save_state(
    folder: Path, place: Place, order: int, tensors: Mapping[str, Tensor], recipe: Recipe
) -> None:
    """Write a state under a temporary name, move it into place, and remove old ones.

    Args:
        folder: of the states.
        place: where the run is.
        order: steps of the whole run so far; names the file.
        tensors: everything.
        recipe: of the run.

    Raises:
        OutputError: it cannot be written; what was there is as it was.
    """
    about = {"format": FORMAT, "stage": place.stage, "step": str(place.step)}
    path = folder / f"state_{order:09d}.safetensors"
    try:
        make_folders(folder)
        for leftover in folder.glob(".state_*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None
    # scalars (AdamW's step counts) have no place in a file that refuses empty shapes
    whole = {
        name: value.reshape(1) if value.ndim == 0 else value for name, value in tensors.items()
    }
    write_weight_file(path, whole, {**about, "recipe": to_json(recipe)})
    for old in sorted(folder.glob("state_*.safetensors"))[:-KEPT]:
        old.unlink(missing_ok=True)


def load_state(folder: Path) -> State | None:
    """The newest state that is whole; ``None`` if there is none.

    Raises:
        ModelError: the newest file is not a state, or damaged.
    """
    files = sorted(folder.glob("state_*.safetensors"))
    if not files:
        return None
    file = read_weight_file(files[-1])
    if file.metadata.get("format") != FORMAT:
        raise ModelError(f"{files[-1]}: not a state of training; move it away")
    try:
        place = Place(file.metadata["stage"], int(file.metadata["step"]))
    except (KeyError, ValueError):
        raise ModelError(f"{files[-1]}: says no place in a run; move it away") from None
    tensors = {name: tensor.clone() for name, tensor in read_tensors(file, file.tensors)}
    return State(place, tensors)


def optimizer_tensors(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The state of an optimizer, by the names of its parameters."""
    found = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key}/{name}"] = torch.as_tensor(value)
    return found


def restore_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """The reverse of :func:`optimizer_tensors`."""
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        parameter = parameters[name]
        if key == "step":
            optimizer.state[parameter][key] = value.reshape(())
        else:
            optimizer.state[parameter][key] = value.to(parameter.device)


def recipe_of(folder: Path) -> str | None:
    """The recipe that a run was started with, as text."""
    path = folder / "recipe.json"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def differences(ours: str, theirs: str) -> list[str]:
    """The settings that two recipes (as text) disagree on; "not JSON" if one cannot be read."""

    def flat(value: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(value, dict):
            return {prefix: value}
        parts = [flat(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items()]
        return {name: v for part in parts for name, v in part.items()}

    try:
        a, b = flat(json.loads(ours)), flat(json.loads(theirs))
    except (ValueError, RecursionError):
        return ["not JSON"]
    return sorted(name for name in a | b if a.get(name) != b.get(name))
