"""The full-size recipe at a reduced size: adapters, every stage, and files that load again."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from metric_oracles import write_weights
from safetensors.torch import load_file
from training_fixtures import SMALL_WAN, TESTS, random_batch, wan_directory, wan_recipe

from psssr_fast.checkpoint import load_checkpoint, merge_lora
from psssr_fast.errors import ModelError, UsageError
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import resized
from psssr_fast.training.export import export
from psssr_fast.training.lora import LoraLinear, attach_lora, lora_state, merged_state, without_lora
from psssr_fast.training.manifest import Manifest, Source
from psssr_fast.training.networks import build, checkpoint_blocks
from psssr_fast.training.plan import plan_stage
from psssr_fast.training.recipe import Weights, default_recipe
from psssr_fast.training.scene import Scene
from psssr_fast.training.stages import open_stage
from psssr_fast.weights_layout import lora_shapes

CPU = torch.device("cpu")
STAGES = ("base", "pixel", "draft")
VAE = SMALL_WAN.codec


@pytest.fixture
def start(tmp_path):
    (tmp_path / "wan").mkdir()
    return wan_directory(tmp_path / "wan")


def step(stage, batch, seed=0, rate=1e-3):
    """One optimisation step of every objective; the losses."""
    scene, parts = Scene(batch, seed), {}
    for objective in stage.objectives:
        parameters = list(objective.parameters.values())
        optimizer = torch.optim.AdamW(parameters, lr=rate)
        optimizer.zero_grad()
        result = objective.loss(scene)
        result.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        optimizer.step()
        parts |= {name: float(value.detach()) for name, value in result.parts.items()}
    return parts


def randomise_adapters(network):
    for module in network.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_B.weight, std=0.05)


def outputs(network):
    latents, time = torch.randn(1, 32, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 700.0
    context = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.step(latents, time, context).velocity


def test_adapters_change_nothing_until_they_are_trained_and_can_be_switched_off():
    network = Dit(SMALL_WAN.dit)
    before = outputs(network)
    attach_lora(network, 4)
    assert torch.equal(outputs(network), before)
    randomise_adapters(network)
    assert not torch.equal(outputs(network), before)
    with without_lora(network):
        assert torch.equal(outputs(network), before)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name in lora_shapes(SMALL_WAN.dit, 4) if ".lora_" in name}


def test_adapters_are_those_of_peft():
    peft = pytest.importorskip("peft", reason="the oracle of adapters")
    torch.manual_seed(3)
    ours = Dit(SMALL_WAN.dit)
    theirs = copy.deepcopy(ours)
    attach_lora(ours, 4)
    randomise_adapters(ours)
    layers = ["q", "k", "v", "o", "ffn.0", "ffn.2"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=4, target_modules=layers), theirs)
    state = {name: value for name, value in lora_state(ours).items() if ".lora_" in name}
    loaded = {name.replace(".weight", ".default.weight"): value for name, value in state.items()}
    result = theirs.load_state_dict(loaded, strict=False)
    assert result.unexpected_keys == []
    assert not any(".lora_" in name for name in result.missing_keys)
    torch.testing.assert_close(outputs(theirs), outputs(ours), atol=1e-6, rtol=1e-6)


def test_the_merged_network_computes_the_same():
    network = Dit(SMALL_WAN.dit)
    attach_lora(network, 4)
    randomise_adapters(network)
    plain = Dit(SMALL_WAN.dit)
    plain.load_state_dict(merged_state(network))
    torch.testing.assert_close(outputs(plain), outputs(network), atol=1e-5, rtol=1e-5)


def test_the_base_starts_as_the_foundation_model_and_teaches_itself(start):
    models = build(wan_recipe(start), CPU, SMALL_WAN)
    foundation = load_file(start / "foundation_dit.safetensors")
    weight = models.base.patch_embedding.weight
    assert torch.equal(weight[:, :16], foundation["patch_embedding.weight"].float())
    assert not weight[:, 16:].any()  # the condition counts for nothing yet
    latents = torch.randn(1, 16, 1, 4, 4)
    with torch.no_grad():
        context = models.context
        ours = models.base.step(torch.cat([latents, latents], 1), 300.0, context).velocity
        teacher = models.teacher.step(latents, 300.0, context).velocity
    torch.testing.assert_close(ours, teacher)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_stage_moves_its_own_parameters_and_no_others(start, precision):
    recipe = wan_recipe(start, precision=precision)
    models = build(recipe, CPU, SMALL_WAN)
    batch = random_batch(recipe)
    counts = {"base": 3, "pixel": 1, "draft": 1}
    for name in STAGES:
        stage = open_stage(name, models, recipe)
        assert len(stage.objectives) == counts[name]
        moved = {key for o in stage.objectives for key in o.parameters}
        before = {
            f"{network}.{key}": value.clone()
            for network, module in models.modules().items()
            for key, value in module.state_dict().items()
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            parts = step(stage, batch)
        assert set(stage.falling) <= set(parts)
        after = {
            f"{network}.{key}": value
            for network, module in models.modules().items()
            for key, value in module.state_dict().items()
        }
        changed = {key for key in after if not torch.equal(after[key], before[key])}
        assert changed <= moved
        still = moved - changed  # a zero gradient is possible only in what cannot matter
        assert len(still) < 0.05 * len(moved), sorted(still)[:5]


@pytest.mark.parametrize("name", STAGES)
def test_checkpointed_blocks_have_the_same_gradients(start, name):
    found = []
    for checkpointing in (False, True):
        recipe = wan_recipe(start, gradient_checkpointing=checkpointing)
        models = build(recipe, CPU, SMALL_WAN)
        stage = open_stage(name, models, recipe)
        stage.objectives[0].loss(Scene(random_batch(recipe), 0)).total.backward()
        found.append({k: p.grad for k, p in stage.objectives[0].parameters.items()})
        network = models.draft if name == "draft" else models.base
        wrapped = ["forward" in vars(block) for block in network.blocks]
        assert all(wrapped) if checkpointing else not any(wrapped)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_noise_belongs_to_samples_and_not_to_processes(start):
    """Two processes with a sample each have, together, the loss of one with both."""
    recipe = wan_recipe(start, weights=Weights(lpips=0, adversarial=0))
    models = build(recipe, CPU, SMALL_WAN)
    randomise_adapters(models.teacher)  # or VSD, which is noisy, would be nothing
    stage = open_stage("base", models, recipe)
    whole = random_batch(recipe)
    halves = [
        replace(whole, high=whole.high[i : i + 1], low=whole.low[i : i + 1], indices=(i,))
        for i in range(2)
    ]
    objective = stage.objectives[0]
    together = [objective.loss(Scene(b, 0)).total.item() for b in (whole, *halves)]
    assert together[0] == pytest.approx((together[1] + together[2]) / 2, rel=1e-5)


def test_guidance_leads_away_from_the_negative_prompt(start, tmp_path):
    other = tmp_path / "negative"
    other.mkdir()
    shutil.copyfile(start / "prompt.safetensors", other / "prompt.safetensors")
    recipe = wan_recipe(start, guidance=5.0, negative_prompt=str(other))
    models = build(recipe, CPU, SMALL_WAN)

    def vsd(networks):
        stage, scene = open_stage("base", networks, recipe), Scene(random_batch(recipe), 0)
        return stage.objectives[0].loss(scene).parts["vsd"].item()

    same = vsd(models)
    models.negative = models.negative + 1
    changed = vsd(models)
    plain = vsd(build(wan_recipe(start), CPU, SMALL_WAN))
    assert same == pytest.approx(plain, rel=1e-4)
    assert changed != pytest.approx(plain, rel=1e-3)


def test_lpips_joins_the_pixel_loss(start, tmp_path):
    write_weights(tmp_path, "vgg")
    recipe = wan_recipe(start, weights=Weights(), lpips=str(tmp_path))
    models = build(recipe, CPU, SMALL_WAN)
    parts = step(open_stage("pixel", models, recipe), random_batch(recipe))
    assert set(parts) == {"l2", "pixel", "lpips"} and parts["lpips"] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_written_is_the_model_that_was_trained(start, tmp_path, precision):
    recipe = wan_recipe(start, precision=precision)
    models = build(recipe, CPU, SMALL_WAN)
    for name in STAGES:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            step(open_stage(name, models, recipe), random_batch(recipe))
    manifest = Manifest(tmp_path, (Source("a.png", "0", "CC0", 1, 64, 64),))
    base, draft = export(models, recipe, manifest, start)
    assert (base.name, draft.name) == ("base.safetensors", "draft.safetensors")
    for ours, released in ((base, "base_lora"), (draft, "draft")):  # name by name
        golden = load_file(TESTS / f"golden/{released}.safetensors")
        shapes = {name: value.shape for name, value in load_file(ours).items()}
        assert shapes == {name: value.shape for name, value in golden.items()}
    loaded = load_checkpoint(start)
    assert loaded.size == SMALL_WAN
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    foundation = load_file(start / "foundation_dit.safetensors")
    lora = {name: value.to(dtype) for name, value in lora_state(models.base).items()}
    expected = merge_lora(foundation, lora)
    assert expected.keys() == loaded.base.keys()
    assert all(torch.equal(loaded.base[name], expected[name]) for name in expected)
    trained = models.draft.state_dict()
    assert all(torch.equal(loaded.draft[name], trained[name].to(dtype)) for name in trained)
    if precision == "fp32":  # and computes what was trained, adapters and all
        network = Dit(SMALL_WAN.dit)
        network.load_state_dict({name: value.float() for name, value in loaded.base.items()})
        torch.testing.assert_close(outputs(network), outputs(models.base), atol=1e-4, rtol=1e-4)


def test_starts_that_do_not_fit_are_refused(start, tmp_path):
    with pytest.raises(UsageError, match=r"is trained from Wan2\.1: give its directory"):
        build(replace(wan_recipe(start), start=None), CPU, SMALL_WAN)
    with pytest.raises(ModelError, match=r"does not fit: blocks\.6\.cross_attn\S+ has shape none"):
        build(wan_recipe(start), CPU, resized(SMALL_WAN, replace(SMALL_WAN.dit, layers=7), VAE))
    (start / "prompt.safetensors").unlink()
    with pytest.raises(ModelError, match="no prompt embedding; make one once"):
        build(wan_recipe(start), CPU, SMALL_WAN)
    (start / "vae.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no Wan2\.1 VAE; training starts from both"):
        build(wan_recipe(start), CPU, SMALL_WAN)


def test_checkpointing_keeps_the_names_of_parameters():
    network = Dit(SMALL_WAN.dit)
    names = list(network.state_dict())
    checkpoint_blocks(network)
    assert list(network.state_dict()) == names


def test_a_plan_of_the_full_size_counts_what_is_trained():
    recipe = default_recipe("wan2.1-1.3b")
    base, draft = plan_stage("base", recipe), plan_stage("draft", recipe)
    adapters, discriminator = 43_745_280, 4_693_377
    assert base.trained == 44_041_792 + adapters + discriminator
    assert draft.trained == 537_482_304
    assert draft.optimizer == 2 * 4 * draft.trained
    # at the least every block's input, in bf16; at the most what two H100 have
    assert 30 * 32_400 * 1536 * 2 < base.step < draft.step < 80 * 2**30


def test_a_plan_knows_what_checkpointing_and_smaller_clips_save(tmp_path):
    recipe = replace(wan_recipe(tmp_path, precision="bf16"), start=None)
    deep = replace(SMALL_WAN.dit, dim=192, ffn_dim=768, layers=30, kept_blocks=(9, 19, 29))
    size = resized(SMALL_WAN, deep, VAE)
    large = replace(recipe, clips=replace(recipe.clips, size=128))
    step = plan_stage("base", large, size).step
    assert plan_stage("base", recipe, size).step < 0.5 * step
    frugal = replace(large, gradient_checkpointing=True)
    assert plan_stage("base", frugal, size).step < 0.5 * step
