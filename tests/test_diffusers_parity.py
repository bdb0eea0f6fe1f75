"""Our VAE and DiT against diffusers' independent implementations, on tiny random models."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import DitSize, VaeSize
from psssr_fast.models.vae import WanVae

NAMES = json.loads((Path(__file__).parent / "data/wan21_map.json").read_text())
DIT = DitSize(
    dim=40,  # heads of 20: time 8, height 6, width 6, so that mistaken axes show
    ffn_dim=96,
    heads=2,
    layers=4,
    kept_blocks=(1, 3),
    in_channels=16,
    text_dim=24,
    freq_dim=32,
)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def shaken(model: nn.Module) -> nn.Module:
    """The model with noise on every parameter: none keeps a special value such as 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False).eval()


def load_renamed(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Load ``theirs`` into ``ours``; every tensor of both must find its partner."""
    weights = theirs.state_dict()
    renamed = {name: weights.pop(other) for name, other in names.items() if other in weights}
    assert not weights
    ours.load_state_dict(renamed, strict=True)
    ours.requires_grad_(False)


@pytest.fixture(scope="module")
def vaes() -> tuple[WanVae, AutoencoderKLWan]:
    torch.manual_seed(0)
    ours, theirs = WanVae(VaeSize(dim=6)), shaken(AutoencoderKLWan(base_dim=6))
    theirs.decoder.conv_out.weight.mul_(0.1)  # diffusers clamps to [-1, 1]: stay inside
    load_renamed(ours, theirs, NAMES["vae"])
    return ours, theirs


@pytest.fixture(scope="module")
def dits() -> tuple[Dit, WanTransformer3DModel]:
    torch.manual_seed(1)
    theirs = WanTransformer3DModel(
        num_attention_heads=DIT.heads,
        attention_head_dim=DIT.dim // DIT.heads,
        text_dim=DIT.text_dim,
        freq_dim=DIT.freq_dim,
        ffn_dim=DIT.ffn_dim,
        num_layers=DIT.layers,
    )
    ours = Dit(DIT, draft=False)
    load_renamed(ours, shaken(theirs), NAMES["dit"])
    return ours, theirs


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_vae_encodes_like_diffusers(vaes, chunked):
    ours, theirs = vaes
    picture = torch.rand(2, 3, 9, 24, 40) * 2 - 1
    mean = torch.tensor(theirs.config.latents_mean).view(-1, 1, 1, 1)
    std = torch.tensor(theirs.config.latents_std).view(-1, 1, 1, 1)
    expected = (theirs.encode(picture).latent_dist.mode() - mean) / std
    assert relative_error(ours.encode(picture, chunked=chunked), expected) <= 1e-4


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_vae_decodes_like_diffusers(vaes, chunked):
    ours, theirs = vaes
    latents = torch.randn(2, 16, 3, 3, 5)
    mean = torch.tensor(theirs.config.latents_mean).view(-1, 1, 1, 1)
    std = torch.tensor(theirs.config.latents_std).view(-1, 1, 1, 1)
    expected = theirs.decode(latents * std + mean).sample
    assert 0.1 < expected.abs().max() < 1  # nothing hides in the clamp
    assert relative_error(ours.decode(latents, chunked=chunked), expected) <= 1e-4


def test_dit_predicts_like_diffusers(dits):
    ours, theirs = dits
    inputs: list[Tensor] = []
    for index in DIT.kept_blocks:
        theirs.blocks[index].register_forward_pre_hook(lambda _block, args: inputs.append(args[0]))
    latents, context = torch.randn(2, 16, 3, 6, 10), torch.randn(2, 7, DIT.text_dim)
    timestep = torch.tensor([700.0, 400.0])
    (expected,) = theirs(latents, timestep, context, return_dict=False)
    velocity, features = ours(latents, timestep, context)
    assert relative_error(velocity, expected) <= 1e-4
    assert len(features) == len(inputs) == 2
    for feature, block_input in zip(features, inputs, strict=True):
        assert relative_error(feature, block_input) <= 1e-4
