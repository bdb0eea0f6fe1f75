"""Loading a model: names, sizes, merging. Real full-size key sets; weights of a reduced size."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psssr_fast.checkpoint import (
    load_checkpoint,
    original_names,
    recognise,
    state_dict_id,
)
from psssr_fast.errors import ModelError
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import SIZES, DitSize, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.weights_files import TensorInfo, WeightFile
from psssr_fast.weights_parts import Kind, Part, assemble

TESTS = Path(__file__).parent
GOLDEN = {
    name: TESTS / f"golden/{name}.safetensors"
    for name in ("foundation_dit", "base_lora", "draft", "vae")
}
MAPS: dict[str, dict[str, str]] = json.loads((TESTS / "data/wan21_map.json").read_text())
KEYS = {
    name: {key: tuple(shape) for key, shape in entry["keys"].items()}
    for name, entry in json.loads((TESTS / "data/wan21_keys.json").read_text()).items()
}
WIDENED = {"patch_embedding.weight": (1536, 32, 1, 2, 2)}
ADAPTED = r"(blocks\.\d+\.(?:self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02]))\.weight"


def full_base() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released base.safetensors."""
    shapes = {name: KEYS["dit_orig"][name] for name in KEYS["dit_orig"] if "head.head" in name}
    shapes |= WIDENED | {"patch_embedding.bias": (1536,)}
    for name, shape in KEYS["dit_orig"].items():
        if match := re.fullmatch(ADAPTED, name):
            shapes[f"{match[1]}.lora_A.default.weight"] = (32, shape[1])
            shapes[f"{match[1]}.lora_B.default.weight"] = (shape[0], 32)
    return shapes


def full_draft() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released draft.safetensors."""
    dropped = re.compile(r"blocks\.[12]\d\.")
    shapes = {name: s for name, s in KEYS["dit_orig"].items() if not dropped.match(name)} | WIDENED
    for block in range(10):
        shapes[f"fc_layers.{block}.weight"] = (1536, 3072)
        shapes[f"fc_layers.{block}.bias"] = (1536,)
    return shapes


def part_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> Part:
    """A part with these names and shapes; no file, no weights."""
    path = Path(name)
    tensors = {key: TensorInfo("BF16", shape, path) for key, shape in shapes.items()}
    return recognise(WeightFile(path, (path,), tensors, {}))


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


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("part", "identity"),
    [
        ("dit_orig", "9269f8db9040a9d860eaca435be61814"),
        ("vae_orig", "ccc42284ea13e1ad04693284c7a09be6"),
    ],
)
def test_the_published_key_sets_have_the_published_ids(part, identity):
    assert state_dict_id(KEYS[part]) == identity


@pytest.mark.parametrize(("part", "count"), [("dit", 825), ("vae", 194)])
def test_every_diffusers_name_maps_to_its_original_name(part, count):
    kind, layout, names = original_names(KEYS[f"{part}_diffusers"])
    assert layout == "diffusers" and kind is (Kind.FOUNDATION if part == "dit" else Kind.VAE)
    assert len(names) == count
    assert {ours: theirs for theirs, ours in names.items()} == MAPS[part]
    translated = {ours: KEYS[f"{part}_diffusers"][theirs] for theirs, ours in names.items()}
    assert translated == KEYS[f"{part}_orig"]


@pytest.mark.parametrize("part", ["dit", "vae"])
def test_original_names_stay_as_they_are(part):
    kind, layout, names = original_names(KEYS[f"{part}_orig"])
    assert layout == "original" and kind is (Kind.FOUNDATION if part == "dit" else Kind.VAE)
    assert all(theirs == ours for theirs, ours in names.items())


@pytest.mark.parametrize("vae", ["vae_orig", "vae_diffusers"])
@pytest.mark.parametrize("dit", ["dit_orig", "dit_diffusers"])
def test_the_full_size_parts_make_the_published_size(dit, vae, tmp_path):
    base, draft = full_base(), full_draft()
    assert (len(base), len(draft)) == (604, 305)
    parts = [
        part_of(KEYS[dit], "dit"),
        part_of(KEYS[vae], "vae"),
        part_of(base, "base"),
        part_of(draft, "draft"),
    ]
    assembly = assemble(parts, tmp_path)
    assert assembly.size is SIZES["wan2.1-1.3b"]
    assert assembly.size.dit.heads == 12
    assert assembly.size.dit.kept_blocks == (2, 5, 8, 11, 14, 17, 20, 23, 26, 29)


def test_sizes_are_read_from_the_shapes(model_dir):
    size = load_checkpoint(model_dir).size
    assert size.dit == DitSize(
        dim=48,
        ffn_dim=96,
        heads=2,
        layers=6,
        kept_blocks=(2, 5),
        in_channels=32,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
    )
    assert size.codec == VaeSize(dim=4)


def test_modules_of_the_found_size_take_the_state_dicts(model_dir):
    checkpoint = load_checkpoint(str(model_dir))
    Dit(checkpoint.size.dit, draft=False).load_state_dict(checkpoint.base)
    Dit(checkpoint.size.dit, draft=True).load_state_dict(checkpoint.draft)
    WanVae(checkpoint.size.codec).load_state_dict(checkpoint.codec)
    assert checkpoint.prompt is None


def test_the_base_is_the_foundation_plus_its_lora(model_dir):
    merged = load_checkpoint(model_dir).base
    foundation, lora = load_file(GOLDEN["foundation_dit"]), load_file(GOLDEN["base_lora"])
    assert merged.keys() == foundation.keys()
    adapted = 0
    for name, tensor in merged.items():
        left = lora.get(name.replace(".weight", ".lora_B.default.weight"))
        if name in lora:
            assert torch.equal(tensor, lora[name])
        elif left is None:
            assert torch.equal(tensor, foundation[name])
        else:
            right = lora[name.replace(".weight", ".lora_A.default.weight")]
            exact = foundation[name].double() + left.double() @ right.double()
            assert (tensor - exact).abs().max() <= 2**-23 * exact.abs().max()
            assert not torch.equal(tensor, foundation[name])
            adapted += 1
    assert adapted == 60


def test_merging_into_bf16_rounds_once(model_dir):
    foundation = load_file(GOLDEN["foundation_dit"])
    halved = {name: tensor.bfloat16() for name, tensor in foundation.items()}
    save_file(halved, model_dir / "file0.safetensors")
    lora = load_file(GOLDEN["base_lora"])
    name = "blocks.3.ffn.0"
    left, right = lora[f"{name}.lora_B.default.weight"], lora[f"{name}.lora_A.default.weight"]
    exact = halved[f"{name}.weight"].double() + left.double() @ right.double()
    merged = load_checkpoint(model_dir).base[f"{name}.weight"]
    assert merged.dtype == torch.bfloat16
    ulp = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((merged - exact).abs() <= 0.501 * ulp).all()


def test_a_diffusers_copy_loads_the_same_tensors(model_dir):
    first = load_checkpoint(model_dir)
    for number, part in ((0, "dit"), (3, "vae")):
        path = model_dir / f"file{number}.safetensors"
        folder = model_dir / ("transformer" if part == "dit" else "vae")
        folder.mkdir()
        renamed = {MAPS[part][name]: tensor for name, tensor in load_file(path).items()}
        save_file(renamed, folder / "diffusion_pytorch_model.safetensors")
        path.unlink()
    second = load_checkpoint(model_dir)
    assert equal(first.base, second.base) and equal(first.codec, second.codec)
    assert (first.size, first.id) == (second.size, second.id)


@pytest.mark.parametrize("prefix", ["model.", "model_state.", "model_state.model."])
def test_nested_names_are_unwrapped(model_dir, prefix):
    first = load_checkpoint(model_dir)
    for number in (0, 2, 3):
        path = model_dir / f"file{number}.safetensors"
        save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    second = load_checkpoint(model_dir)
    assert equal(first.base, second.base) and equal(first.draft, second.draft)
    assert equal(first.codec, second.codec)


def test_lora_names_may_lack_default_and_may_start_with_diffusion_model(model_dir):
    first = load_checkpoint(model_dir)
    path = model_dir / "file1.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        is_lora = ".lora_" in name
        renamed[f"diffusion_model.{name.replace('.default', '')}" if is_lora else name] = tensor
    save_file(renamed, path)
    assert equal(first.base, load_checkpoint(model_dir).base)


def test_a_sharded_file_loads_the_same_tensors(model_dir):
    first = load_checkpoint(model_dir)
    path = model_dir / "file0.safetensors"
    state = load_file(path)
    weight_map = {name: f"shard-{index % 2}.safetensors" for index, name in enumerate(state)}
    for shard in set(weight_map.values()):
        save_file({n: t for n, t in state.items() if weight_map[n] == shard}, model_dir / shard)
    (model_dir / "x.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    path.unlink()
    assert equal(first.base, load_checkpoint(model_dir).base)


def test_heads_default_to_128_channels_and_must_divide(model_dir):
    (model_dir / "config.json").unlink()
    with pytest.raises(ModelError, match=r"48 channels do not split.*num_heads in a config.json"):
        load_checkpoint(model_dir)
    for heads, outcome in (('"two"', "needed a whole number"), ("5", "48 channels do not split")):
        (model_dir / "config.json").write_text(f'{{"num_attention_heads": {heads}}}')
        with pytest.raises(ModelError, match=outcome):
            load_checkpoint(model_dir)
    (model_dir / "config.json").write_text('{"num_attention_heads": 4}')
    assert load_checkpoint(model_dir).size.dit.heads == 4


def test_the_text_encoders_configuration_does_not_tell_the_heads(model_dir):
    (model_dir / "text_encoder").mkdir()
    (model_dir / "text_encoder" / "config.json").write_text('{"num_heads": 64}')
    assert load_checkpoint(model_dir).size.dit.heads == 2


@pytest.mark.parametrize("k_select", [1.5, 3])
def test_a_k_select_that_gives_the_drafts_blocks_is_accepted(model_dir, k_select):
    (model_dir / "config.json").write_text(json.dumps({"num_heads": 2, "k_select": k_select}))
    assert load_checkpoint(model_dir).size.dit.kept_blocks == (2, 5)


@pytest.mark.parametrize("k_select", [1, 2, 6, 0, "many"])
def test_a_k_select_that_does_not_give_the_drafts_blocks_is_refused(model_dir, k_select):
    (model_dir / "config.json").write_text(json.dumps({"num_heads": 2, "k_select": k_select}))
    with pytest.raises(ModelError, match=r"config.json: k_select"):
        load_checkpoint(model_dir)


def test_a_prompt_embedding_is_padded_with_zeros(model_dir):
    embedding = torch.randn(9, 32)
    save_file({"prompt_embedding": embedding}, model_dir / "prompt.safetensors")
    prompt = load_checkpoint(model_dir).prompt
    assert prompt is not None and prompt.shape == (512, 32)
    assert torch.equal(prompt[:9], embedding) and not prompt[9:].any()


def test_the_id_tells_weights_apart_and_not_files(model_dir):
    first = load_checkpoint(model_dir).id
    (model_dir / "file3.safetensors").rename(model_dir / "renamed.safetensors")
    assert load_checkpoint(model_dir).id == first
    path = model_dir / "file2.safetensors"
    rewrite(path, {"head.head.bias": load_file(path)["head.head.bias"] * 2})
    assert load_checkpoint(model_dir).id != first
