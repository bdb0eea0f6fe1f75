"""A model computed more exactly than it was loaded: for windows in which numbers overflowed."""

import copy

import torch

from psssr_fast.attention import Problem, select_attention
from psssr_fast.engine import GraphedVae
from psssr_fast.models.codec import Codec, WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.pipeline import Networks
from psssr_fast.runtime.dit_engine import FusedDit, PromptKeys
from psssr_fast.sampling import Transformer


def in_float32(networks: Networks) -> Networks:
    """A copy that computes in fp32, with attention that can, and without graphs."""
    device = networks.device
    context = networks.context
    return Networks(
        base=_transformer_in_float32(networks.base, device),
        draft=_transformer_in_float32(networks.draft, device),
        codec=_codec_in_float32(networks.codec),
        context=None if context is None else context.float(),
    )


def _transformer_in_float32(network: Transformer, device: torch.device) -> Transformer:
    copied = copy.deepcopy(network)
    assert isinstance(copied, Dit | FusedDit)
    copied.float()
    size = copied.size
    problem = Problem(
        device, torch.float32, size.dim // size.heads, size.attention_window is not None
    )
    _, copied.attention, copied.windows = select_attention(problem)
    if isinstance(copied, FusedDit) and copied.prompt is not None:
        prompt = copied.prompt
        copied.prompt = PromptKeys(
            tuple(keys.float() for keys in prompt.keys),
            tuple(values.float() for values in prompt.values),
            None if prompt.bias is None else prompt.bias.float(),
        )
    return copied


def _codec_in_float32(codec: Codec) -> Codec:
    if not isinstance(codec, WanCodec):
        copied = copy.deepcopy(codec)
        assert isinstance(copied, torch.nn.Module)
        return copied.float()
    vae = codec.vae.vae if isinstance(codec.vae, GraphedVae) else codec.vae
    assert isinstance(vae, torch.nn.Module)
    return WanCodec(copy.deepcopy(vae).float())
