"""The small codec of ``nano``."""

import pytest
import torch

from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.sizes import NANO, CodecSize


def trained() -> NanoCodec:
    """A codec none of whose layers is zero."""
    codec = NanoCodec(CodecSize(dim=8)).eval()
    for parameter in codec.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return codec


def test_a_codec_that_has_learnt_nothing_returns_the_picture_it_was_given():
    codec = NanoCodec(NANO.codec).eval()
    picture = torch.rand(1, 3, 2, 32, 48) * 2 - 1
    latents, condition = codec.encode(picture)
    assert latents.shape == (1, 16, 2, 4, 6)
    assert torch.equal(codec.decode(torch.randn_like(latents), condition), picture)


def test_picture_and_latents_both_matter_to_the_decoder():
    codec = trained()
    one, other = (torch.rand(2, 1, 3, 1, 32, 32) * 2 - 1).unbind()
    latents, condition = codec.encode(one)
    other_latents, other_condition = codec.encode(other)
    decoded = codec.decode(latents, condition)
    assert not torch.allclose(decoded, codec.decode(other_latents, condition))
    assert not torch.allclose(decoded, codec.decode(latents, other_condition))


def test_the_drafts_pictures_have_a_drawer_of_their_own():
    codec = trained()
    latents, condition = codec.encode(torch.rand(2, 3, 2, 32, 32) * 2 - 1)
    base, drafts = (codec.decode(latents, condition, [flag] * 2) for flag in (False, True))
    assert torch.equal(base, codec.decode(latents, condition))
    assert not torch.allclose(base, drafts)
    mixed = codec.decode(latents, condition, (False, True))
    torch.testing.assert_close(mixed, torch.stack([base[0], drafts[1]]))


@pytest.mark.parametrize("shape", [(2, 3, 3, 16, 16), (1, 3, 1, 16, 80), (1, 3, 2, 736, 752)])
def test_frames_are_independent_whatever_the_batch_and_the_size(shape):
    codec = trained()
    picture = torch.rand(shape) * 2 - 1
    with torch.inference_mode():
        latents, condition = codec.encode(picture)
        whole = codec.decode(latents, condition)
        last = codec.decode(*codec.encode(picture[-1:, :, -1:]))
    assert whole.shape == picture.shape
    torch.testing.assert_close(whole[-1:, :, -1:], last)
