"""A model of this project in one file."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psssr_fast.checkpoint import load_checkpoint, save_bundle
from psssr_fast.errors import ModelError, OutputError, UsageError
from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import NANO, SIZES

DRAFT = Path(__file__).parent / "golden/draft.safetensors"


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def nano_states() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    base, draft = Dit(NANO.dit, draft=False), Dit(NANO.dit, draft=True)
    return base.state_dict(), draft.state_dict(), NanoCodec(NANO.codec).state_dict()


def test_a_bundle_comes_back_as_it_was_saved(tmp_path, nano_states):
    path = tmp_path / "mine.safetensors"
    save_bundle(path, "nano", *nano_states, {"licence": "CC0", "model": "not this"})
    for source in (path, tmp_path):
        checkpoint = load_checkpoint(source)
        assert checkpoint.size is SIZES["nano"] and checkpoint.source == str(source)
        loaded = (checkpoint.base, checkpoint.draft, checkpoint.codec)
        assert all(equal(a, b) for a, b in zip(loaded, nano_states, strict=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_bundle_of_another_size_is_not_written(tmp_path, nano_states):
    base, draft, codec = nano_states
    path = tmp_path / "mine.safetensors"
    with pytest.raises(UsageError, match=r"no size 'giant'; known are: wan2.1-1.3b, nano"):
        save_bundle(path, "giant", base, draft, codec, {})
    for broken in (replace_one(base, "head.head.bias", None), base | {"more": torch.ones(1)}):
        with pytest.raises(UsageError, match=r"nano: base\.(head.head.bias|more): got"):
            save_bundle(path, "nano", broken, draft, codec, {})
    assert not path.exists()
    with pytest.raises(OutputError, match=r"cannot be written"):
        save_bundle(tmp_path / "no/such/folder.safetensors", "nano", base, draft, codec, {})


def replace_one(state: Mapping[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    changed = {**state, name: value}
    return {key: tensor for key, tensor in changed.items() if tensor is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft.fc_layers.0.bias": None}, "missing key draft.fc_layers.0.bias"),
        ({"codec.more": torch.ones(1)}, "unexpected key codec.more"),
        ({"vae.conv1.bias": torch.ones(1)}, "unexpected key vae.conv1.bias"),
        ({"base.head.head.bias": torch.ones(3)}, r"base.head.head.bias has shape \[3\]; needed"),
    ],
)
def test_a_changed_bundle_is_refused(tmp_path, nano_states, change, message):
    path = tmp_path / "mine.safetensors"
    save_bundle(path, "nano", *nano_states, {})
    changed = {**load_file(path), **change}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(kept, path, {"format": "psssr_fast", "model": "nano"})
    with pytest.raises(ModelError, match=message):
        load_checkpoint(path)


def test_a_bundle_beside_other_parts_is_refused(tmp_path, nano_states):
    shutil.copyfile(DRAFT, tmp_path / "draft.safetensors")
    save_bundle(tmp_path / "mine.safetensors", "nano", *nano_states, {})
    with pytest.raises(ModelError, match=r"a whole model in .*mine.* beside it"):
        load_checkpoint(tmp_path)
