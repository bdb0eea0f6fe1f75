"""Convolution over time, height and width that never looks forward in time.

Activations are ``[B, C, T, H, W]``, channels last in memory. The input is a *ring*: its frame axis
holds the history of this convolution, so that frame ``n`` of the clip lives in slot ``n % R`` and
nothing is copied from one chunk of the clip to the next. A whole clip is a ring without history.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.ops._bands import in_bands

LAYOUT = torch.channels_last_3d


def pack_conv_weight(weight: Tensor) -> Tensor:
    """Lay out a weight ``[N, C, kt, kh, kw]`` as the kernel reads it: channels last.

    Shape and values stay, so every other convolution still takes it. The kernel does this to other
    weights at every call: do it once, at load.
    """
    return weight.contiguous(memory_format=LAYOUT)


def _frames(x: Tensor, frames: int) -> int:
    return x.shape[2] if frames == -1 else frames


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, frames: int, past: int
) -> None:
    if x.dim() != 5 or not x.is_floating_point() or 0 in x.shape:
        raise UsageError(
            f"causal_conv3d: x must be floating point [B, C, R, H, W]; got {x.dtype} "
            f"{list(x.shape)}; add the missing axes"
        )
    even = weight.dim() == 5 and any(k % 2 == 0 for k in weight.shape[3:])
    if weight.dim() != 5 or weight.shape[1] != x.shape[1] or even:
        raise UsageError(
            f"causal_conv3d: weight must be [N, {x.shape[1]}, kt, odd kh, odd kw]; got "
            f"{list(weight.shape)}; pass the layer's own"
        )
    if bias.shape != weight.shape[:1]:
        raise UsageError(
            f"causal_conv3d: bias must be [{len(weight)}]; got {list(bias.shape)}; "
            "pass the layer's own, or zeros"
        )
    history = min(past, weight.shape[2] - 1)
    if past < 0 or frames < 1 or history + frames > x.shape[2]:
        raise UsageError(
            f"causal_conv3d: {x.shape[2]} slots must hold frames and history; got frames={frames}, "
            f"past={past} for {weight.shape[2]} taps in time; allocate a longer ring"
        )
    shape = [len(x), len(weight), frames, *x.shape[3:]]
    if residual is not None and list(residual.shape) != shape:
        raise UsageError(
            f"causal_conv3d: residual must be {shape}, as the output; got {list(residual.shape)}; "
            "project it first"
        )
    for name, tensor in (("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise UsageError(
                f"causal_conv3d: {name} must be {x.dtype} on {x.device}, as x; got {tensor.dtype} "
                f"on {tensor.device}; convert it"
            )


def causal_conv3d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    first: int = 0,
    frames: int = -1,
    past: int = 0,
) -> Tensor:
    """Compute :func:`causal_conv3d` in plain PyTorch, rounding where ``vae.CausalConv3d`` does."""
    frames = _frames(x, frames)
    _check(x, weight, bias, residual, frames, past)
    before, _, kh, kw = (weight.shape[2] - 1, *weight.shape[2:])
    history = min(past, before)
    slots = torch.arange(first - history, first + frames, device=x.device) % x.shape[2]
    inputs = F.pad(x.index_select(2, slots), (0, 0, 0, 0, before - history, 0))
    y = F.conv3d(inputs, weight, bias, padding=(0, kh // 2, kw // 2))
    return y if residual is None else residual + y


def causal_conv3d_by_library(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    first: int = 0,
    frames: int = -1,
    past: int = 0,
) -> Tensor:
    """Compute :func:`causal_conv3d_ref` in bands, where a library could not count the elements."""
    frames = _frames(x, frames)
    _check(x, weight, bias, residual, frames, past)
    read, written = x.shape[1] * (frames + weight.shape[2] - 1), len(weight) * frames

    def run(rows: slice) -> Tensor:
        added = None if residual is None else residual[..., rows, :]
        return causal_conv3d_ref(x[..., rows, :], weight, bias, added, first, frames, past)

    elements = len(x) * max(read, written) * x.shape[4]
    return in_bands(run, x.shape[3], elements, halo=weight.shape[3] // 2)


@torch.library.custom_op("psssr_fast::causal_conv3d", mutates_args=())
def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    first: int = 0,
    frames: int = -1,
    past: int = 0,
) -> Tensor:
    """Convolve causally, and add a bias and a residual.

    With input frame ``j >= -past`` in slot ``(first + j) % R`` and zeros before that::

        y[t, h, w] = bias + residual[t, h, w] + sum over (a, b, c) of
                     weight[a, b, c] . x[t - (kt - 1) + a, h - kh // 2 + b, w - kw // 2 + c]

    The reference rounds the convolution and then the sum, the kernel only the sum. Taps before the
    clip and outside the picture cost nothing: nothing is padded, concatenated or copied.

    Args:
        x: ring, ``[B, C, R, H, W]``, floating point; read in place if it is channels last.
        weight: ``[N, C, kt, kh, kw]``, odd ``kh`` and ``kw``; see :func:`pack_conv_weight`.
        bias: ``[N]``.
        residual: added to the output, whose shape it has.
        first: slot of the first frame, or its number in the clip: taken modulo ``R``.
        frames: of the output; -1 for ``R``.
        past: frames before the first that the ring still holds. Those that no tap reaches do not
            count; with the rest, ``frames`` must fit into ``R``.

    Returns:
        ``[B, N, frames, H, W]``, dtype of ``x``, channels last.

    Raises:
        UsageError: shapes, dtypes or frame numbers are not as above.
    """
    y = causal_conv3d_by_library(x, weight, bias, residual, first, frames, past)
    return torch.empty_like(y, memory_format=LAYOUT).copy_(y)


@causal_conv3d.register_kernel("cuda")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    first: int = 0,
    frames: int = -1,
    past: int = 0,
) -> Tensor:
    from psssr_fast.kernels.causal_conv3d import better_by_library, causal_conv3d_triton

    frames = _frames(x, frames)
    if better_by_library(x, weight):
        y = causal_conv3d_by_library(x, weight, bias, residual, first, frames, past)
        return y.contiguous(memory_format=LAYOUT)
    _check(x, weight, bias, residual, frames, past)
    return causal_conv3d_triton(x, weight, bias, residual, first, frames, past)


@causal_conv3d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    first: int = 0,
    frames: int = -1,
    past: int = 0,
) -> Tensor:
    frames = _frames(x, frames)
    shape = (len(x), len(weight), frames, *x.shape[3:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAYOUT)
