"""Small models for tests of what lies above the networks."""

import copy
from dataclasses import replace

import torch

from psssr_fast.config import Settings, Windows, settings_for
from psssr_fast.models.codec import NanoCodec, WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import CodecSize, DitSize, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.pipeline import Networks
from psssr_fast.upscaler import Upscaler

DIT = DitSize(
    dim=24, ffn_dim=32, heads=2, layers=4, kept_blocks=(1, 3), text_dim=0, freq_dim=16,
    attention_window=(2, 4, 4),
)  # fmt: skip
WAN = DitSize(dim=48, ffn_dim=64, heads=2, layers=4, kept_blocks=(1, 3), text_dim=16, freq_dim=16)
SMALL = Windows(frames=4, height=64, width=64, overlap_frames=1, overlap_pixels=16)


def networks(trained: bool) -> Networks:
    """Random small networks; untrained, their codec returns the picture it is given."""
    torch.manual_seed(7)
    codec = NanoCodec(CodecSize(dim=8, encoder_blocks=1, decoder_blocks=1))
    if trained:
        for parameter in codec.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    base, draft = Dit(DIT), Dit(DIT, draft=True)
    for network in (base, draft, codec):
        network.eval().requires_grad_(False)
    return Networks(base, draft, codec, None)


def wan_like() -> Networks:
    """The structure of the full model, small."""
    torch.manual_seed(5)
    base, draft, vae = Dit(WAN), Dit(WAN, draft=True), WanVae(VaeSize(dim=8, res_blocks=1))
    for network in (base, draft, vae):
        network.eval().requires_grad_(False)
    context = torch.randn(1, 12, 16)
    context[:, 4:] = 0
    return Networks(base, draft, WanCodec(vae), context)


def in_dtype(networks: Networks, dtype: torch.dtype) -> Networks:
    """A copy of plain networks in another dtype."""
    copied = copy.deepcopy(networks)
    codec = copied.codec
    (codec if isinstance(codec, NanoCodec) else codec.vae).to(dtype)
    context = None if copied.context is None else copied.context.to(dtype)
    return replace(
        copied, base=copied.base.to(dtype), draft=copied.draft.to(dtype), context=context
    )


MODELS = {"wan": wan_like, "nano": lambda: networks(trained=True)}


def upscaler(trained: bool = True, settings: Settings | None = None) -> Upscaler:
    """An upscaler on small networks and windows."""
    chosen = settings or settings_for("released", SMALL)
    return Upscaler(networks(trained), chosen, "test", "sdpa")
