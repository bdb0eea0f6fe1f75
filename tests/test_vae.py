"""The Wan VAE: parity with the release, streaming, causality, names, cost and refusals."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from psssr_fast.errors import UsageError
from psssr_fast.models.sizes import VaeSize
from psssr_fast.models.vae import CausalCache, CausalConv3d, RMSNorm, Upsample, WanVae
from psssr_fast.testing import assert_as_accurate

HERE = Path(__file__).parent
REDUCED = VaeSize(dim=4)
ROUNDING = 2e-5  # fp32, relative to the largest value, after some thirty convolutions


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def random_vae(size: VaeSize = REDUCED, seed: int = 0) -> WanVae:
    """A reduced VAE in which no parameter has a special value (norms start as ones)."""
    generator = torch.Generator().manual_seed(seed)
    vae = WanVae(size).requires_grad_(False)
    for name, parameter in vae.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return vae


def clip(frames: int, height: int = 16, width: int = 16, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


def latent_clip(frames: int, height: int = 2, width: int = 2, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, frames, height, width)


chunking = pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])


@pytest.fixture(scope="module")
def golden() -> tuple[WanVae, dict[str, Tensor]]:
    vae = WanVae(REDUCED).requires_grad_(False)
    vae.load_state_dict(load_file(HERE / "golden/vae.safetensors"), strict=True)
    return vae, load_file(HERE / "golden/vae_io.safetensors")


@pytest.fixture(scope="module")
def full_size() -> WanVae:
    with torch.device("meta"):
        return WanVae(VaeSize())


@chunking
def test_encode_equals_the_release(golden, chunked):
    vae, io = golden
    assert relative_error(vae.encode(io["video"], chunked=chunked), io["latents"]) <= 1e-4


@chunking
def test_decode_equals_the_release(golden, chunked):
    vae, io = golden
    assert relative_error(vae.decode(io["latents"], chunked=chunked), io["decoded"]) <= 1e-4


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 24), (8, 56)])
@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_chunked_equals_whole(frames, height, width):
    vae = random_vae()
    picture = clip(frames, height, width, batch=2)
    latents = vae.encode(picture)
    decoded = vae.decode(latents)
    assert latents.shape == (2, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    assert decoded.shape == picture.shape
    assert relative_error(vae.encode(picture, chunked=True), latents) <= ROUNDING
    assert relative_error(vae.decode(latents, chunked=True), decoded) <= ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunked_is_as_accurate_as_whole_against_fp64(dtype):
    exact_vae, vae = random_vae().to(dtype).double(), random_vae().to(dtype)
    picture, latents = clip(9, 24, 16).to(dtype), latent_clip(3, 3, 2).to(dtype)
    assert_as_accurate(
        vae.encode(picture, chunked=True),
        eager=vae.encode(picture),
        exact=exact_vae.encode(picture.double()),
    )
    assert_as_accurate(
        vae.decode(latents, chunked=True),
        eager=vae.decode(latents),
        exact=exact_vae.decode(latents.double()),
    )


def test_other_factors_and_widths_stream_too():
    """Three levels, time halved at the first: 4x in space, 2x in time, 6 latent channels."""
    size = VaeSize(
        dim=4, z_dim=6, dim_mult=(1, 2, 2), res_blocks=1, temporal_downsample=(True, False)
    )
    vae = random_vae(size)
    picture = clip(7, 12, 20)
    latents = vae.encode(picture)
    assert latents.shape == (1, 6, 4, 3, 5)
    assert relative_error(vae.encode(picture, chunked=True), latents) <= ROUNDING
    decoded = vae.decode(latents)
    assert decoded.shape == picture.shape
    assert relative_error(vae.decode(latents, chunked=True), decoded) <= ROUNDING


@chunking
@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8])
def test_a_frame_changes_no_earlier_latent(frame, chunked):
    vae, picture = random_vae(), clip(9)
    changed = picture.clone()
    changed[:, :, frame] = -changed[:, :, frame]
    before, after = vae.encode(picture, chunked=chunked), vae.encode(changed, chunked=chunked)
    group = (frame + 3) // 4
    assert torch.equal(before[:, :, :group], after[:, :, :group])
    assert not torch.equal(before[:, :, group], after[:, :, group])


@chunking
@pytest.mark.parametrize("frame", [0, 1, 2])
def test_a_latent_frame_changes_no_earlier_picture(frame, chunked):
    vae, latents = random_vae(), latent_clip(3)
    changed = latents.clone()
    changed[:, :, frame] = -changed[:, :, frame]
    before, after = vae.decode(latents, chunked=chunked), vae.decode(changed, chunked=chunked)
    start = max(0, 4 * frame - 3)
    assert torch.equal(before[:, :, :start], after[:, :, :start])
    assert not torch.equal(before[:, :, start], after[:, :, start])


def test_frame_0_is_no_history_of_temporal_upsampling():
    """What the release does: zeros, not frame 0, come before frame 1 in the time convolution."""
    layer = Upsample(4, temporal=True).requires_grad_(False)
    x = torch.randn(1, 4, 3, 2, 2)
    changed = torch.cat([x[:, :, :1] + 1, x[:, :, 1:]], dim=2)
    before, after = layer(x, CausalCache()), layer(changed, CausalCache())
    assert before.shape == (1, 2, 5, 4, 4)
    assert torch.equal(before[:, :, 1:], after[:, :, 1:])
    assert not torch.equal(before[:, :, 0], after[:, :, 0])


def test_pixels_are_doubled_as_in_fp32():
    """The release repeats pixels in fp32 and casts back; repeating in bf16 gives the same bits."""
    nearest = Upsample(4, temporal=False).resample[0]
    x = torch.randn(1, 4, 3, 5, dtype=torch.bfloat16)
    assert torch.equal(nearest(x), nearest(x.float()).bfloat16())
    assert torch.equal(nearest(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_norm_of_nothing_is_nothing():
    norm = RMSNorm(4)
    x = torch.zeros(1, 4, 1, 1, 2)
    x[..., 1] = torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 4, 1, 1)
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.2, 0.0, 1.6, 0.0]])
    torch.testing.assert_close(norm(x)[0, :, 0, 0].T, expected)


def test_norm_computes_in_fp32_at_least_and_rounds_once():
    norm, x = RMSNorm(6), torch.randn(2, 6, 1, 3, 5)
    half, wide = norm.bfloat16()(x.bfloat16()), norm.double()(x.double())
    assert torch.equal(half, norm.float()(x.bfloat16().float()).bfloat16())
    exact = x.double() / x.double().square().mean(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(wide, exact, rtol=1e-14, atol=0)


def test_cache_keeps_two_frames_and_not_the_chunk_they_came_from():
    cache, layer, x = CausalCache(), CausalConv3d(3, 3), torch.randn(1, 3, 8, 4, 4)
    layer(x, cache)
    kept = cache._frames[layer]
    assert torch.equal(kept, x[:, :, -2:])
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_a_clip_in_one_piece_remembers_nothing(monkeypatch):
    caches = []
    monkeypatch.setattr(CausalCache, "__init__", recording(CausalCache.__init__, caches))
    vae = random_vae()
    vae.decode(vae.encode(clip(5)))
    assert [len(cache._frames) for cache in caches] == [0, 0]
    vae.decode(vae.encode(clip(5), chunked=True), chunked=True)
    assert all(len(cache._frames) > 20 for cache in caches[2:])


def recording(init, caches):
    def record(self, *args, **keywords):
        caches.append(self)
        init(self, *args, **keywords)

    return record


def test_threads_share_one_model():
    vae = random_vae()
    pictures = [clip(9) for _ in range(4)]
    alone = [vae.decode(vae.encode(picture, chunked=True), chunked=True) for picture in pictures]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(
            lambda picture: vae.decode(vae.encode(picture, chunked=True), chunked=True), pictures
        )
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_latents_are_normalised_with_the_published_statistics():
    vae = random_vae()
    raw = {}
    vae.conv1.register_forward_hook(lambda _module, _inputs, output: raw.update(out=output))
    latents = vae.encode(clip(1))
    mu = raw["out"][:, :16]
    torch.testing.assert_close(latents[:, 3], (mu[:, 3] - 0.1075) / 2.6558)
    torch.testing.assert_close(latents[:, 15], (mu[:, 15] + 0.2921) / 1.9160)


def test_full_size_has_the_names_and_shapes_of_the_released_file(full_size):
    listed = json.loads((HERE / "data/wan21_keys.json").read_text())["vae_orig"]
    ours = {name: list(tensor.shape) for name, tensor in full_size.state_dict().items()}
    assert ours == listed["keys"]
    assert sum(parameter.numel() for parameter in full_size.parameters()) == 126_892_531


def test_weights_assigned_to_a_model_built_on_meta_work():
    reference = random_vae().bfloat16()
    with torch.device("meta"):
        vae = WanVae(REDUCED).requires_grad_(False)
    vae.load_state_dict(reference.state_dict(), strict=True, assign=True)
    picture = clip(5).bfloat16()
    latents = vae.encode(picture)
    assert torch.equal(latents, reference.encode(picture))
    assert torch.equal(vae.decode(latents), reference.decode(latents))


@chunking
def test_cost_of_29_frames_of_720p(full_size, chunked):
    """In floating-point operations, counted without computing: 137.78 and 230.37 TFLOP."""
    with FlopCounterMode(display=False) as encoding:
        latents = full_size.encode(torch.empty(1, 3, 29, 720, 1280, device="meta"), chunked=chunked)
    with FlopCounterMode(display=False) as decoding:
        full_size.decode(latents, chunked=chunked)
    assert latents.shape == (1, 16, 8, 90, 160)
    assert encoding.get_total_flops() == pytest.approx(137.78e12, rel=1e-3)
    assert decoding.get_total_flops() == pytest.approx(230.37e12, rel=1e-3)


def test_gradients_flow_through_chunks():
    vae = random_vae()
    picture = clip(5).requires_grad_()
    vae.decode(vae.encode(picture, chunked=True), chunked=True)[:, :, 4].sum().backward()
    assert picture.grad is not None
    assert (picture.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()  # every frame reaches the last


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.zeros(1, 3, 6, 16, 16), r"cannot encode 6 frames: need 4n \+ 1; .* up to 9"),
        (torch.zeros(1, 3, 4, 16, 16), r"cannot encode 4 frames: .* up to 5"),
        (torch.zeros(1, 3, 1, 20, 31), r"cannot encode 20x31 pixels: .* pad to 24x32"),
        (torch.zeros(1, 4, 1, 16, 16), r"shape \(1, 4, 1, 16, 16\): need .* \[batch, 3, frames"),
        (torch.zeros(1, 3, 16, 16), r"shape \(1, 3, 16, 16\)"),
        (torch.zeros(1, 3, 0, 16, 16), r"shape \(1, 3, 0, 16, 16\)"),
        (torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8), r"torch\.uint8 tensor"),
    ],
)
def test_unfit_pictures_are_refused(picture, message):
    with pytest.raises(UsageError, match=message) as refusal:
        random_vae().encode(picture)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 8, 2, 4, 4), r"shape \(1, 8, 2, 4, 4\): need .* \[batch, 16, frames"),
        (torch.zeros(16, 2, 4, 4), r"shape \(16, 2, 4, 4\)"),
        (torch.zeros(1, 16, 0, 4, 4), r"shape \(1, 16, 0, 4, 4\)"),
        (torch.zeros(1, 16, 1, 4, 4, dtype=torch.int64), r"torch\.int64 tensor"),
    ],
)
def test_unfit_latents_are_refused(latents, message):
    with pytest.raises(UsageError, match=message):
        random_vae().decode(latents)


def test_no_module_holds_state_after_a_call():
    vae = random_vae()
    before = [dict(vars(module)) for module in vae.modules()]
    vae.decode(vae.encode(clip(5), chunked=True), chunked=True)
    assert [dict(vars(module)) for module in vae.modules()] == before
    assert not any(isinstance(module, nn.Dropout) for module in vae.modules())
