"""The engine's transformer computes what the plain one computes."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from psssr_fast.errors import UsageError
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import NANO, DitSize
from psssr_fast.runtime.dit_engine import FusedDit, distinct_tokens, linear_gelu, log_counts
from psssr_fast.testing import assert_as_accurate

WAN = DitSize(dim=96, ffn_dim=160, heads=2, layers=6, kept_blocks=(2, 5), text_dim=32, freq_dim=32)
LOCAL = replace(NANO.dit, dim=64, ffn_dim=96, heads=2, attention_window=(2, 3, 4))
TIMES = (700.0, 500.0)


def prompt(words: int, length: int) -> torch.Tensor:
    context = torch.zeros(1, length, 32)
    context[:, :words] = torch.randn(1, words, 32)
    return context


def run_plain(networks, latents, context):
    base, draft = networks
    context = None if context is None else context.to(latents.dtype).expand(len(latents), -1, -1)
    first = base.step(latents, TIMES[0], context, ())
    return first, draft.step(latents.flip(0), TIMES[1], context, first.features)


def run_fused(networks, latents, context, features):
    """The draft gets the plain base's features: errors of base and draft are told apart."""
    context = None if context is None else context.to(latents.dtype)
    base, draft = (FusedDit(network, TIMES, context) for network in networks)
    first = base.step(latents, TIMES[0])
    return first, draft.step(latents.flip(0), TIMES[1], None, draft.prepare_features(features))


def both(size: DitSize) -> tuple[Dit, Dit]:
    networks = Dit(size).eval(), Dit(size, draft=True).eval()
    for network in networks:
        network.requires_grad_(False)
        for parameter in network.parameters():  # so that norms' weights and biases matter
            parameter += 0.02 * torch.randn_like(parameter)
    return networks


CASES = [
    (WAN, (1, 32, 1, 2, 2), prompt(5, 40)),
    (WAN, (2, 32, 3, 6, 10), prompt(7, 64)),
    (WAN, (1, 32, 2, 4, 6), prompt(9, 9)),
    (LOCAL, (1, 32, 1, 2, 2), None),
    (LOCAL, (2, 32, 5, 14, 18), None),
    (LOCAL, (1, 32, 3, 6, 8), None),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "shape", "context"), CASES)
def test_engine_is_as_accurate_as_the_plain_transformer(size, shape, context, dtype):
    networks = both(size)
    latents = torch.randn(shape)
    with torch.no_grad():
        compare_networks(networks, latents, context, dtype)


def compare_networks(networks, latents, context, dtype):
    exact = run_plain([copy.deepcopy(n).double() for n in networks], latents.double(), context)
    low = [copy.deepcopy(network).to(dtype) for network in networks]
    eager = run_plain(low, latents.to(dtype), context)
    fused = run_fused(low, latents.to(dtype), context, eager[0].features)
    for one, other, truth in zip(fused, eager, exact, strict=True):
        assert_as_accurate(one.velocity, other.velocity, truth.velocity)
        for feature, its_eager, its_truth in zip(
            one.features, other.features, truth.features, strict=True
        ):
            assert_as_accurate(feature, its_eager, its_truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_linear_with_gelu_is_as_accurate_as_eager(tokens, dtype):
    layer = torch.nn.Linear(48, 100).requires_grad_(False).to(dtype)
    x = 3 * torch.randn(2, tokens, 48).to(dtype)

    def eager(x, layer):
        return F.gelu(layer(x), approximate="tanh")

    with torch.no_grad():
        actual = linear_gelu(x, layer)
    exact = eager(x.double(), copy.deepcopy(layer).double())
    assert_as_accurate(actual, eager(x, layer), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 490, 511])
def test_a_few_numbers_stand_for_a_count(count, dtype):
    biases = log_counts(count, dtype)
    assert len(biases) <= min(count, 4)
    assert all(torch.tensor(bias, dtype=dtype).item() == bias for bias in biases)
    assert sum(torch.tensor(biases, dtype=torch.float64).exp()).item() == pytest.approx(
        count, rel=1e-5
    )


def test_tail_of_the_prompt_is_shortened_and_nothing_else():
    context = prompt(5, 512)
    context[:, 2] = 0  # a zero token inside the prompt is not its tail
    shorter, biases = distinct_tokens(context.bfloat16())
    assert shorter.shape[1] == 5 + len(biases) < 10
    assert torch.equal(shorter[:, :5], context[:, :5].bfloat16())
    whole = prompt(9, 9)
    assert distinct_tokens(whole) == (whole, [])
    assert distinct_tokens(torch.zeros(1, 3, 8))[0].shape[1] <= 3


def test_weights_are_shared_with_the_plain_transformer_except_merged_ones():
    plain = Dit(WAN).eval().requires_grad_(False)
    fused = FusedDit(plain, TIMES, prompt(3, 8))
    assert fused.blocks[0].ffn1.weight is plain.blocks[0].ffn[0].weight
    assert fused.blocks[0].qkv_weight.shape == (3 * 96, 96)


def test_a_timestep_it_was_not_made_for_is_refused():
    fused = FusedDit(Dit(WAN).eval().requires_grad_(False), TIMES, prompt(3, 8))
    with pytest.raises(UsageError, match=r"made for timesteps .*; got 123; make a new Upscaler"):
        fused.step(torch.randn(1, 32, 1, 2, 2), 123.0)
