"""Nearest-neighbour doubling and 3x3 convolution of the VAE's decoder, without the large picture.

Of the nine taps that an output pixel sums, some fall on copies of one input pixel. Adding their
weights first leaves four products, with one set of weights for each phase, even or odd, of row and
column: 4/9 of the arithmetic, and the doubled picture is never made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import UsageError
from psssr_fast.ops._bands import in_bands

LAYOUT = torch.channels_last_3d
# [phase, tap of the phase, tap of the kernel] along an axis. Phase 0 reads input pixels i - 1 and
# i for output 2 i, phase 1 reads i and i + 1 for output 2 i + 1.
SUMS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def pack_upsample_weight(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Add the weights of a 3x3 convolution that meet the same input pixel: once, at load.

    Sums are taken in fp32 at least and rounded once, an error of at most half an ulp a weight, as
    rounding a checkpoint to ``dtype`` makes: from fp32 weights it is the only one, so pass those
    where there are any.

    Args:
        weight: ``[N, C, 3, 3]``.
        dtype: of the result; by default that of ``weight``.

    Returns:
        ``[4, N, C, 2, 2]``, phases (even, even), (even, odd), (odd, even), (odd, odd) of row and
        column; input channels last in memory.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    sums = torch.tensor(SUMS, dtype=wide, device=weight.device)
    phases = torch.einsum("pai,qbj,ncij->pqnabc", sums, sums, weight.to(wide)).flatten(0, 1)
    return phases.to(dtype or weight.dtype).contiguous().permute(0, 1, 4, 2, 3)


def _check(x: Tensor, weight: Tensor, bias: Tensor, phases: Tensor | None) -> None:
    if x.dim() != 5 or not x.is_floating_point() or 0 in x.shape:
        raise UsageError(
            f"upsample_conv2d: x must be floating point [B, C, T, H, W]; got {x.dtype} "
            f"{list(x.shape)}; add the missing axes"
        )
    if weight.dim() != 4 or list(weight.shape[1:]) != [x.shape[1], 3, 3]:
        raise UsageError(
            f"upsample_conv2d: weight must be [N, {x.shape[1]}, 3, 3]; got {list(weight.shape)}; "
            "pass the layer's own"
        )
    if bias.shape != weight.shape[:1]:
        raise UsageError(
            f"upsample_conv2d: bias must be [{len(weight)}]; got {list(bias.shape)}; "
            "pass the layer's own, or zeros"
        )
    if phases is not None and list(phases.shape) != [4, *weight.shape[:2], 2, 2]:
        raise UsageError(
            f"upsample_conv2d: phases must be {[4, *weight.shape[:2], 2, 2]}; got "
            f"{list(phases.shape)}; make them with pack_upsample_weight"
        )
    for name, tensor in (("weight", weight), ("bias", bias), ("phases", phases)):
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise UsageError(
                f"upsample_conv2d: {name} must be {x.dtype} on {x.device}, as x; got "
                f"{tensor.dtype} on {tensor.device}; convert it"
            )


def upsample_conv2d_ref(
    x: Tensor, weight: Tensor, bias: Tensor, phases: Tensor | None = None
) -> Tensor:
    """Compute :func:`upsample_conv2d` in plain PyTorch, as ``vae.Upsample`` does."""
    _check(x, weight, bias, phases)
    frames = x.transpose(1, 2).flatten(0, 1)
    doubled = F.interpolate(frames, scale_factor=2.0, mode="nearest-exact")
    y = F.conv2d(doubled, weight, bias, padding=1)
    return torch.unflatten(y, 0, (len(x), -1)).transpose(1, 2)


def upsample_conv2d_by_library(
    x: Tensor, weight: Tensor, bias: Tensor, phases: Tensor | None = None
) -> Tensor:
    """Compute :func:`upsample_conv2d_ref` in bands, where a library could not count the elements
    of the doubled picture."""
    _check(x, weight, bias, phases)

    def run(rows: slice) -> Tensor:
        return upsample_conv2d_ref(x[..., rows, :], weight, bias)

    channels = max(x.shape[1], len(weight))
    return in_bands(run, x.shape[3], 4 * len(x) * channels * x.shape[2] * x.shape[4], halo=1)


@torch.library.custom_op("psssr_fast::upsample_conv2d", mutates_args=())
def upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, phases: Tensor | None = None
) -> Tensor:
    """Double height and width by repeating pixels, then convolve 3x3 with zero padding.

    Each frame by itself. The kernel multiplies with ``phases``, the reference with ``weight``.

    Args:
        x: ``[B, C, T, H, W]``, floating point; read in place if it is channels last.
        weight: ``[N, C, 3, 3]``.
        bias: ``[N]``.
        phases: ``pack_upsample_weight(weight)``; without it the kernel makes it at every call.

    Returns:
        ``[B, N, T, 2H, 2W]``, dtype of ``x``, channels last.

    Raises:
        UsageError: shapes or dtypes are not as above.
    """
    y = upsample_conv2d_by_library(x, weight, bias, phases)
    return torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=LAYOUT).copy_(y)


@upsample_conv2d.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor, phases: Tensor | None = None) -> Tensor:
    from psssr_fast.kernels.upsample_conv2d import better_by_library, upsample_conv2d_triton

    _check(x, weight, bias, phases)
    if better_by_library(x, weight):
        return upsample_conv2d_by_library(x, weight, bias).contiguous(memory_format=LAYOUT)
    return upsample_conv2d_triton(
        x, pack_upsample_weight(weight) if phases is None else phases, bias
    )


@upsample_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, phases: Tensor | None = None) -> Tensor:
    batch, _, frames, height, width = x.shape
    shape = (batch, len(weight), frames, 2 * height, 2 * width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAYOUT)
