"""What an attention backend is, and the question it is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""``attention(q, k, v, mask)``: all ``[batch, tokens, heads, head_dim]``; ``mask`` is ``None`` or
bool, broadcastable to ``[batch, heads, queries, keys]``, true where a query may see a key."""


@dataclass(frozen=True)
class Problem:
    """The attention a model will ask for, known when the model is loaded.

    Attributes:
        device, dtype, head_dim: of queries, keys and values.
        masked: whether some calls hide keys (windows at the edge of the clip).
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    masked: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        masked = ", masked" if self.masked else ""
        return f"{dtype}, head_dim={self.head_dim}{masked}, on {self.device}"


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Attributes:
        name: what the user passes as ``attention=``.
        objections: why this backend cannot solve a problem; empty when it can.
        load: import the backend's package and return its function.
    """

    name: str
    objections: Callable[[Problem], list[str]]
    load: Callable[[], Attention]


def gpu_half_objections(problem: Problem, package: str, head_dim_limit: int) -> list[str]:
    """The objections that the optional GPU packages share."""
    objections = []
    if problem.device.type != "cuda":
        objections.append(f"needs a CUDA device, got {problem.device}")
    if problem.dtype not in (torch.float16, torch.bfloat16):
        objections.append(f"needs float16 or bfloat16, got {problem.dtype}")
    if problem.head_dim > head_dim_limit:
        objections.append(f"needs head_dim <= {head_dim_limit}, got {problem.head_dim}")
    if problem.masked:
        objections.append("has no mask, which this model's attention windows need")
    if find_spec(package) is None:
        objections.append(f"package {package!r} is not installed")
    return objections
