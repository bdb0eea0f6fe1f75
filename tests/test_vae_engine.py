"""The engine's VAE computes what the plain one computes."""

import copy

import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.models.sizes import VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.runtime.rings import Pass, Place, put
from psssr_fast.runtime.vae_engine import FusedVae

SIZE = VaeSize(dim=8, res_blocks=1)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(3)
    vae = WanVae(SIZE).eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return vae


def assert_engine_as_accurate(actual, eager, exact):
    """In bf16 at most 1.05 times the plain networks' error, root mean square; in fp32 2 times.

    Folded weights round elsewhere, which moves the largest of a few thousand errors at random.
    """
    assert (actual.shape, actual.dtype) == (eager.shape, eager.dtype)
    slack = 1.05 if actual.dtype == torch.bfloat16 else 2.0
    error, bound = ((x.double() - exact).square().mean().sqrt() for x in (actual, eager))
    assert error <= slack * bound


def in_dtype(vae, dtype):
    return copy.deepcopy(vae).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frames", [1, 5, 9, 13])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_encode_is_as_accurate_as_the_plain_vae(vae, frames, chunked, dtype):
    picture = (torch.rand(2, 3, frames, 24, 40) * 2 - 1).to(dtype)
    plain = in_dtype(vae, dtype)
    actual = FusedVae(plain).encode(picture, chunked=chunked)
    exact = in_dtype(vae, dtype).double().encode(picture.double())
    assert_engine_as_accurate(actual, plain.encode(picture), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_decode_is_as_accurate_as_the_plain_vae(vae, frames, chunked, dtype):
    latents = torch.randn(2, 16, frames, 3, 5).to(dtype)
    plain = in_dtype(vae, dtype)
    actual = FusedVae(plain).decode(latents, chunked=chunked)
    exact = in_dtype(vae, dtype).double().decode(latents.double())
    assert_engine_as_accurate(actual, plain.decode(latents), exact)


def test_chunks_give_what_the_whole_clip_gives(vae):
    fused = FusedVae(in_dtype(vae, torch.float64))
    latents = torch.randn(1, 16, 5, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(fused.decode(latents, chunked=True), fused.decode(latents))


def test_calls_share_nothing(vae):
    fused = FusedVae(in_dtype(vae, torch.float32))
    one, other = torch.randn(2, 1, 16, 3, 3, 5)
    first = fused.decode(one, chunked=True)
    fused.decode(other, chunked=True)
    assert torch.equal(fused.decode(one, chunked=True), first)


def test_layers_that_share_a_ring_find_their_history_and_nothing_else(vae):
    """Against rings of their own, with chunks of any length up to the longest."""
    lengths, count, history = (1, 4, 4, 2, 3, 1, 4, 4, 4), 5, 2
    shared, own, position = Pass(keep=True), Pass(keep=True), 0
    clips = torch.randn(count, 1, 2, sum(lengths), 2, 3)
    for length in lengths:
        for layer, clip in enumerate(clips):
            chunk = clip[:, :, position : position + length]
            for state, place in ((shared, Place(0, layer, count, 4)), (own, None)):
                ring, first, past = state.ring(layer, chunk, history, place)
                put(chunk, ring, first)
                assert past == min(position, history)
                slots = [(first + t) % ring.shape[2] for t in range(-past, length)]
                assert torch.equal(
                    ring[:, :, slots], clip[:, :, position - past :][:, :, : past + length]
                )
        position += length
    ring, _ = shared._shared[0]
    assert ring.shape[2] == history * count + 4


def test_a_shared_ring_is_not_used_out_of_order():
    state, chunk = Pass(keep=True), torch.randn(1, 2, 4, 2, 3)
    state.ring("first", chunk, 2, Place(0, 0, 2, 4))
    with pytest.raises(AssertionError, match="out of order"):
        state.ring("first", chunk, 2, Place(0, 0, 2, 4))
    state.ring("second", chunk, 2, Place(0, 1, 2, 4))
    with pytest.raises(AssertionError, match="no room"):
        state.ring("first", torch.randn(1, 2, 5, 2, 3), 2, Place(0, 0, 2, 4))


def test_layers_of_a_level_share_a_ring(vae):
    fused = FusedVae(vae)
    places = [c.place for layer in fused.decoder for c in getattr(layer, "convolutions", list)()]
    assert all(place is not None for place in places)
    assert len({place.ring for place in places}) < len(places) / 2
    for ring in {place.ring for place in places}:
        sharing = [place for place in places if place.ring == ring]
        assert [place.index for place in sharing] == list(range(sharing[0].count))
    assert {place.frames for place in places} == {1, 2, 4}


def test_wrong_shapes_are_refused_like_the_plain_vae_does(vae):
    fused = FusedVae(vae)
    with pytest.raises(UsageError, match="need 4n \\+ 1"):
        fused.encode(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(UsageError, match="need floating-point latents"):
        fused.decode(torch.zeros(1, 3, 4, 16, 16))


def test_a_ring_keeps_the_last_frames_wherever_they_are():
    state, clip = Pass(keep=True), torch.randn(1, 2, 30, 2, 3)
    position = 0
    for length in (1, 4, 4, 2, 4, 1, 1, 4, 6):
        chunk = clip[:, :, position : position + length]
        ring, first, past = state.ring("layer", chunk, history=2)
        put(chunk, ring, first)
        assert past == min(position, 2)
        for back in range(-past, length):
            slot = (first + back) % ring.shape[2]
            assert torch.equal(ring[:, :, slot], clip[:, :, position + back])
        position += length


def test_weights_are_not_kept_twice(vae):
    plain = in_dtype(vae, torch.float32)
    packed = sum(tensor.numel() for tensor in FusedVae(plain).state_dict().values())
    unused = sum(p.numel() for name, p in plain.named_parameters() if name.startswith("conv1."))
    assert packed <= 2 * sum(p.numel() for p in plain.parameters()) - unused
