"""What an attention backend is, and the question it is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""``attention(q, k, v, mask)``: all ``[batch, tokens, heads, head_dim]``; ``mask`` is ``None`` or
bool, broadcastable to ``[batch, heads, queries, keys]``, true where a query may see a key."""

Grid = tuple[int, int, int]
WindowAttention = Callable[[Tensor, Tensor, Tensor, Grid, Grid, Grid], Tensor]
"""``windows(q, k, v, grid, window, shift)``: attention of every token to those of its window; the
tokens are a ``grid`` of time, height and width, whose first window begins ``shift`` before it."""


@dataclass(frozen=True)
class Problem:
    """The attention a model will ask for, known when the model is loaded.

    Attributes:
        device, dtype, head_dim: of queries, keys and values.
        masked: whether the model attends in windows, some of which hide keys at the edge of the
            clip.
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
        load_windows: likewise, for a backend that computes windows without copies or masks.
    """

    name: str
    objections: Callable[[Problem], list[str]]
    load: Callable[[], Attention]
    load_windows: Callable[[], WindowAttention] | None = None


def compute_capability(problem: Problem) -> tuple[int, int] | None:
    """Of the problem's device; ``None`` where there is no such device."""
    if problem.device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(problem.device)


def gpu_objections(problem: Problem, dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """Objections to anything but an Ampere GPU or later, and one of ``dtypes``."""
    objections = []
    if problem.device.type != "cuda":
        objections.append(f"needs a CUDA device, got {problem.device}")
    if problem.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        objections.append(f"needs {names}, got {problem.dtype}")
    capability = compute_capability(problem)
    if capability is not None and capability[0] < 8:
        objections.append(
            f"needs compute capability 8.0 (Ampere) or later, got {capability[0]}.{capability[1]}"
        )
    return objections


def gpu_half_objections(
    problem: Problem, package: str | None, head_dim_limit: int, multiple: int = 1
) -> list[str]:
    """The objections that half-precision GPU kernels without a mask share."""
    objections = gpu_objections(problem, (torch.float16, torch.bfloat16))
    if problem.head_dim > head_dim_limit or problem.head_dim % multiple:
        of = f"a multiple of {multiple}, " if multiple > 1 else ""
        objections.append(f"needs head_dim {of}<= {head_dim_limit}, got {problem.head_dim}")
    if problem.masked:
        objections.append("has no mask, which this model's attention windows need")
    if package is not None and find_spec(package) is None:
        objections.append(f"package {package!r} is not installed")
    return objections
