"""The engine's small codec computes what the plain one computes."""

import copy

import pytest
import torch

from psssr_fast.engine import fuse
from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.sizes import CodecSize
from psssr_fast.runtime.codec_engine import FusedNanoCodec, can_fuse
from psssr_fast.upscaler import Upscaler

SIZES = [CodecSize(dim=16, encoder_blocks=1, decoder_blocks=2), CodecSize()]


def trained(size):
    codec = NanoCodec(size).eval().requires_grad_(False)
    for parameter in codec.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return codec.to(memory_format=torch.channels_last)


def rms(x, exact):
    return (x.double() - exact).square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"dim{size.dim}")
@pytest.mark.parametrize("shape", [(1, 3, 1, 64, 112), (2, 3, 5, 48, 80), (1, 3, 3, 400, 704)])
def test_it_errs_no_more_than_the_plain_codec(size, dtype, shape):
    picture, codec = (torch.rand(shape) * 2 - 1).to(dtype), trained(size)
    wide, low = copy.deepcopy(codec).double(), copy.deepcopy(codec).to(dtype)
    fused = FusedNanoCodec(low)
    exact, eager, ours = (
        one.encode(picture.to(next(one.parameters()))) for one in (wide, low, fused)
    )
    slack = 1.05 if dtype == torch.bfloat16 else 2
    for mine, theirs, truth in zip(ours, eager, exact, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert rms(mine, truth) <= slack * rms(theirs, truth)
    latents, condition = eager
    for drafts in ((), [True] * len(latents), [False, True][: len(latents)]):
        truth = wide.decode(latents.double(), condition.double(), drafts)
        mine, theirs = (one.decode(latents, condition, drafts) for one in (fused, low))
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert rms(mine, truth) <= slack * rms(theirs, truth)


def test_decoding_leaves_what_it_is_given_alone():
    fused, picture = FusedNanoCodec(trained(SIZES[0])), torch.rand(1, 3, 2, 32, 48) * 2 - 1
    before = picture.clone()
    latents, condition = fused.encode(picture)
    kept = latents.clone(), condition.clone()
    first = fused.decode(latents, condition)
    assert torch.equal(fused.decode(latents, condition), first)
    assert torch.equal(picture, before)
    assert torch.equal(latents, kept[0]) and torch.equal(condition, kept[1])


def test_weights_are_shared_and_only_a_cpu_gets_it():
    plain = Upscaler.from_pretrained("nano", device="cpu", engine="plain", dtype=torch.float32)
    fused = fuse(plain.networks, plain.settings.sampling).codec
    assert isinstance(fused, FusedNanoCodec) and fused.codec is plain.networks.codec
    assert can_fuse(torch.device("cpu"), torch.bfloat16)
    assert not can_fuse(torch.device("cpu"), torch.float64)
    assert not can_fuse(torch.device("cuda"), torch.bfloat16)
