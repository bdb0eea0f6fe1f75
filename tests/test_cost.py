"""The cost model counts what the networks do, to the last operation."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from psssr_fast.config import Sampling, Settings, settings_for
from psssr_fast.forecast import empty_networks
from psssr_fast.models.sizes import NANO, WAN_1_3B, CodecSize, DitSize, VaeSize, resized
from psssr_fast.pipeline import restore_window
from psssr_fast.runtime.cost import (
    Work,
    decode_work,
    dit_work,
    encode_work,
    latent_shape,
    padded_shape,
    update_work,
    window_work,
)

META = torch.device("meta")
REDUCED = resized(
    WAN_1_3B,
    DitSize(dim=24, ffn_dim=40, heads=2, layers=4, kept_blocks=(1, 3), text_dim=12, freq_dim=16),
    VaeSize(dim=4),
)
ODD_VAE = resized(
    WAN_1_3B,
    REDUCED.dit,
    VaeSize(dim=4, dim_mult=(1, 1, 3, 2), res_blocks=1, temporal_downsample=(True, False, True)),
)
ODD_NANO = resized(
    NANO,
    DitSize(
        dim=24, ffn_dim=40, heads=2, layers=3, kept_blocks=(0, 2), text_dim=0, freq_dim=16,
        attention_window=(3, 5, 2),
    ),
    CodecSize(dim=8, encoder_blocks=2, decoder_blocks=1),
)  # fmt: skip


def counted(run) -> int:
    """Operations that torch's own counter sees in ``run``, which works on meta tensors."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("size", "shape", "profile"),
    [
        pytest.param(REDUCED, (1, 16, 16), "released", id="wan-one-frame"),
        pytest.param(REDUCED, (6, 33, 50), "released", id="wan-odd"),
        pytest.param(ODD_VAE, (5, 30, 16), "paper", id="other-vae-paper"),
        pytest.param(NANO, (1, 16, 16), "released", id="nano-one-frame"),
        pytest.param(NANO, (8, 180, 320), "paper", id="nano-paper"),
        pytest.param(ODD_NANO, (7, 100, 150), "released", id="other-nano-odd"),
    ],
)
def test_a_window_takes_the_operations_that_torch_counts(size, shape, profile):
    settings = settings_for(profile, size.windows)
    networks = empty_networks(size, torch.float32, settings.sampling, "plain", META)
    frames, height, width = shape
    picture = torch.empty(frames, 3, height, width, device="meta")
    work = window_work(size, shape, settings, 4)
    work["update"] = Work()  # torch has no operations in it that its counter knows
    flops = counted(lambda: restore_window(networks, picture, settings))
    assert sum(stage.flops for stage in work.values()) == flops


def test_the_full_size_takes_the_operations_that_torch_counts_here_and_in_the_original_code():
    """29 frames 720x1280, the workload of the paper's Table 4."""
    shape = (29, 720, 1280)
    work = window_work(WAN_1_3B, shape, settings_for("released"), 2)
    networks = empty_networks(WAN_1_3B, torch.bfloat16, Sampling(), "plain", META)
    latents = latent_shape(WAN_1_3B.codec, padded_shape(WAN_1_3B.codec, shape))

    def meta(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(1, *size, dtype=dtype, device="meta")

    features = [meta(28_800, 1536)] * 10
    time, context = torch.empty(1, device="meta"), networks.context
    runs = {
        "encode": lambda: networks.codec.vae.encode(meta(3, *shape)),
        "decode": lambda: networks.codec.vae.decode(meta(16, *latents)),
        "base": lambda: networks.base(meta(32, *latents), time, context),
        "draft": lambda: networks.draft(meta(32, *latents), time, context, features),
    }
    times = {"encode": 1, "decode": 2, "base": 1, "draft": 3}
    assert {name: work[name].flops for name in runs} == {
        name: times[name] * counted(run) for name, run in runs.items()
    }
    # Teraflops that were counted in Wan's own code, without the prompt's own share.
    prompt = {"base": 30, "draft": 10}  # blocks that have keys and values of it
    original = {"encode": 137.78, "decode": 2 * 230.37, "base": 227.6, "draft": 235.8}
    for name, teraflops in original.items():
        own = work[name].flops
        if name in prompt:
            text = 4096 * 1536 + 1536**2 + prompt[name] * 2 * 1536**2
            own -= times[name] * 2 * 512 * text
        assert own / 1e12 == pytest.approx(teraflops, abs=0.05), name


def test_profiles_differ_in_decodes_and_updates():
    size, shape = NANO, (8, 64, 64)
    few = window_work(size, shape, settings_for("released"), 4)
    many = window_work(size, shape, settings_for("paper"), 4)
    once = decode_work(size.codec, shape, 4)
    assert (few["decode"], many["decode"]) == (once * 2, once * 4)
    assert (few["update"], many["update"]) == (update_work(shape), update_work(shape) * 3)
    assert {name: few[name] for name in ("encode", "base", "draft")} == {
        name: many[name] for name in ("encode", "base", "draft")
    }


def test_a_base_without_a_draft_decodes_once():
    settings = Settings(sampling=Sampling(timesteps=(699.0,)))
    work = window_work(NANO, (8, 64, 64), settings, 4)
    assert (work["draft"], work["update"]) == (Work(), Work())
    assert work["decode"] == decode_work(NANO.codec, (8, 64, 64), 4)


@pytest.mark.parametrize("size", [NANO, WAN_1_3B], ids=lambda size: size.name)
def test_bytes_are_at_least_the_weights_and_what_goes_in_and_out(size):
    """Of every network; the matrices are read once, whatever the window."""
    networks = empty_networks(size, torch.float32, Sampling(), "plain", META)
    shape = padded_shape(size.codec, (5, 64, 64))
    latents = latent_shape(size.codec, shape)
    for network, draft in ((networks.base, False), (networks.draft, True)):
        matrices = sum(p.nbytes for p in network.parameters() if p.dim() > 1)
        modulation = sum(p.nbytes for n, p in network.named_parameters() if "modulation" in n)
        assert dit_work(size.dit, latents, draft, 4).bytes > matrices - modulation
    picture = 4 * 3 * 5 * 64 * 64
    assert encode_work(size.codec, shape, 4).bytes > picture
    assert decode_work(size.codec, shape, 4).bytes > picture
    assert encode_work(size.codec, shape, 2).bytes * 2 == encode_work(size.codec, shape, 4).bytes


def test_an_update_reads_two_pictures_and_writes_one():
    assert update_work((2, 10, 20)).bytes == 3 * (2 * 3 * 10 * 20) * 4
