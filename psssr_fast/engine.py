"""Turn a model's networks into an engine: the same function, rounding apart, built for GPUs.

The plain networks of ``models/`` are the reference, and what training uses. The engine takes their
weights, merges and folds what it can, runs the kernels of ``ops/`` and replays CUDA graphs.
"""

from functools import partial
from typing import Literal, get_args

from torch import Tensor

from psssr_fast.config import Sampling
from psssr_fast.errors import UsageError
from psssr_fast.models.codec import Codec, NanoCodec, WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.vae import WanVae
from psssr_fast.pipeline import Networks
from psssr_fast.runtime.codec_engine import FusedNanoCodec, can_fuse
from psssr_fast.runtime.dit_engine import FusedDit
from psssr_fast.runtime.graphs import GraphCache
from psssr_fast.runtime.tuning import use_remembered
from psssr_fast.runtime.vae_engine import FusedVae
from psssr_fast.sampling import make_schedule

EngineName = Literal["fused", "plain"]


def check_engine(name: str) -> EngineName:
    """Raise UsageError unless an engine has that name."""
    if name not in get_args(EngineName):
        known = " or ".join(repr(known) for known in get_args(EngineName))
        raise UsageError(f"engine must be {known}; got {name!r}")
    return name  # type: ignore[return-value]


class GraphedVae:
    """A VAE whose two directions are captured in CUDA graphs."""

    def __init__(self, vae: FusedVae, graphs: GraphCache) -> None:
        self.vae, self.graphs = vae, graphs

    def encode(self, picture: Tensor, *, chunked: bool = False) -> Tensor:
        """As :meth:`FusedVae.encode`."""
        encode = partial(self.vae.encode, chunked=chunked)
        return self.graphs.run(("encode", chunked), encode, picture)

    def decode(self, latents: Tensor, *, chunked: bool = False) -> Tensor:
        """As :meth:`FusedVae.decode`."""
        decode = partial(self.vae.decode, chunked=chunked)
        return self.graphs.run(("decode", chunked), decode, latents)


def fuse(networks: Networks, sampling: Sampling, graphs: GraphCache | None = None) -> Networks:
    """The engine of a model for one schedule.

    Args:
        networks: plain ones, as they were loaded; the engine shares most of their weights.
        sampling: whose timesteps the engine will be asked for.
        graphs: where its stages are captured; by default a new cache on CUDA, and none elsewhere.
    """
    assert isinstance(networks.base, Dit) and isinstance(networks.draft, Dit)
    first, *later = make_schedule(sampling).timesteps
    if graphs is None and networks.device.type == "cuda":
        graphs = GraphCache()
        use_remembered(networks.device)
    return Networks(
        base=FusedDit(networks.base, [first], networks.context),
        draft=FusedDit(networks.draft, later, networks.context),
        codec=_fused_codec(networks.codec, graphs),
        context=None,
        graphs=graphs,
    )


def _fused_codec(codec: Codec, graphs: GraphCache | None) -> Codec:
    if isinstance(codec, WanCodec) and isinstance(codec.vae, WanVae):
        vae = FusedVae(codec.vae)
        return WanCodec(vae if graphs is None else GraphedVae(vae, graphs))
    if isinstance(codec, NanoCodec):
        weight = codec.read.weight
        return FusedNanoCodec(codec) if can_fuse(weight.device, weight.dtype) else codec
    return codec
