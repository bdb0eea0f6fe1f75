"""A model that is incomplete, damaged or mixed is refused in one line that names the culprit."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import ModelError
from psssr_fast.models.sizes import VaeSize
from psssr_fast.models.vae import WanVae

GOLDEN = {
    name: Path(__file__).parent / f"golden/{name}.safetensors"
    for name in ("foundation_dit", "base_lora", "draft", "vae")
}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A complete model of a reduced size, named in no particular way."""
    for number, path in enumerate(GOLDEN.values()):
        shutil.copyfile(path, tmp_path / f"file{number}.safetensors")
    (tmp_path / "config.json").write_text('{"num_heads": 2}')
    return tmp_path


def rewrite(path: Path, tensors: Mapping[str, Tensor | None]) -> None:
    """Change some tensors of a file; ``None`` removes one."""
    state: dict[str, Tensor | None] = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (0, "blocks.3.self_attn.q.weight"),
        (0, "patch_embedding.weight"),
        (1, "blocks.5.ffn.2.lora_A.weight"),
        (1, "head.head.bias"),
        (2, "fc_layers.1.weight"),
        (2, "blocks.0.modulation"),
        (3, "decoder.upsamples.5.residual.6.weight"),
        (3, "encoder.downsamples.2.resample.1.weight"),
    ],
)
def test_a_missing_key_is_named(model_dir, file, key):
    path = model_dir / f"file{file}.safetensors"
    rewrite(path, {key.replace("lora_A", "lora_A.default"): None})
    with pytest.raises(ModelError, match=f"{path.name}.*missing key {re.escape(key)}$"):
        load_checkpoint(model_dir)


@pytest.mark.parametrize("file", range(4))
def test_an_unexpected_key_is_named(model_dir, file):
    rewrite(model_dir / f"file{file}.safetensors", {"img_emb.proj.weight": torch.ones(2)})
    with pytest.raises(ModelError, match=f"file{file}.*unexpected key img_emb.proj.weight"):
        load_checkpoint(model_dir)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (0, "blocks.1.norm3.weight"),
        (1, "blocks.1.ffn.0.lora_B.default.weight"),
        (2, "head.head.bias"),
        (3, "decoder.middle.1.proj.bias"),
    ],
)
def test_a_wrong_shape_is_named_with_the_one_needed(model_dir, file, key):
    path = model_dir / f"file{file}.safetensors"
    needed = re.escape(str(list(load_file(path)[key].shape)))
    rewrite(path, {key: torch.ones(7, 5)})
    with pytest.raises(ModelError, match=rf"{key} has shape \[7, 5\]; needed {needed}"):
        load_checkpoint(model_dir)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float8_e4m3fn, torch.bool])
def test_a_dtype_that_is_no_float_is_refused(model_dir, dtype):
    rewrite(model_dir / "file2.safetensors", {"head.modulation": torch.ones(1, 2, 48).to(dtype)})
    with pytest.raises(ModelError, match=r"head.modulation is [A-Z0-9_]+; needed one of F64"):
        load_checkpoint(model_dir)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("file", range(4))
def test_weights_that_are_not_finite_are_refused_by_name(model_dir, file, value):
    path = model_dir / f"file{file}.safetensors"
    name, tensor = next((n, t) for n, t in load_file(path).items() if t.ndim > 1)
    tensor.view(-1)[-1] = value
    rewrite(path, {name: tensor})
    with pytest.raises(ModelError, match=f"file{file}.*{name} holds NaN or infinity"):
        load_checkpoint(model_dir)


def test_a_merge_that_overflows_is_refused_by_name(model_dir):
    path = model_dir / "file0.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    name = "blocks.0.ffn.0.lora_B.default.weight"
    rewrite(model_dir / "file1.safetensors", {name: torch.full((96, 4), 1e7)})
    with pytest.raises(ModelError, match=r"blocks.0.ffn.0.weight overflows torch.float16"):
        load_checkpoint(model_dir)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        (0, "Wan2.1-T2V-1.3B DiT (diffusion_pytorch_model.safetensors of Wan-AI/"),
        (1, "PS-SR base (base.safetensors of the PS-SR release"),
        (2, "PS-SR draft (draft.safetensors of the PS-SR release"),
        (3, "Wan2.1 VAE (vae/ of Wan-AI/"),
    ],
)
def test_a_missing_part_is_named_with_where_to_get_it(model_dir, file, part):
    (model_dir / f"file{file}.safetensors").unlink()
    with pytest.raises(ModelError, match=re.escape(f"missing {part}")) as raised:
        load_checkpoint(model_dir)
    others = {f"file{number}.safetensors" for number in range(4)} - {f"file{file}.safetensors"}
    assert all(other in str(raised.value) for other in others)
    assert "\n" not in str(raised.value)


def test_a_part_that_is_there_twice_is_refused(model_dir):
    shutil.copyfile(model_dir / "file2.safetensors", model_dir / "other.safetensors")
    with pytest.raises(ModelError, match=r"two files hold the PS-SR draft: .*file2.*other"):
        load_checkpoint(model_dir)


def test_files_of_something_else_are_left_alone(model_dir):
    save_file({"shared.weight": torch.ones(3)}, model_dir / "umt5.safetensors")
    assert load_checkpoint(model_dir).size.dit.layers == 6


def test_two_names_for_one_tensor_are_refused(model_dir):
    bias = torch.zeros(48)
    rewrite(model_dir / "file0.safetensors", {"diffusion_model.patch_embedding.bias": bias})
    with pytest.raises(ModelError, match=r"are both patch_embedding.bias"):
        load_checkpoint(model_dir)


def test_parts_of_different_latent_widths_are_refused(model_dir):
    vae = WanVae(VaeSize(dim=4, z_dim=8)).state_dict()
    save_file(vae, model_dir / "file3.safetensors")
    with pytest.raises(ModelError, match=r"takes 16 latent channels and gives 16; .* has 8$"):
        load_checkpoint(model_dir)


@pytest.mark.parametrize("shape", [(9, 31), (513, 32), (32,)])
def test_a_prompt_embedding_of_another_width_is_refused(model_dir, shape):
    save_file({"prompt_embedding": torch.ones(shape)}, model_dir / "prompt.safetensors")
    with pytest.raises(ModelError, match=r"prompt_embedding has shape .*; needed \[1 to 512, 32\]"):
        load_checkpoint(model_dir)


def test_a_single_file_that_is_no_bundle_is_refused():
    with pytest.raises(ModelError, match=r"incomplete model: missing .*; found: PS-SR draft in"):
        load_checkpoint(GOLDEN["draft"])
