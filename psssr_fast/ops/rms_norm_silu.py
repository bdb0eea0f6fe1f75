"""Channel normalisation of the VAE with the SiLU that follows it, in one pass.

Activations are ``[B, C, T, H, W]``, channels last in memory. A *ring* is such a tensor whose frame
axis holds the history of the convolution that reads it: frame ``n`` of the clip lives in slot
``n % R``. Writing straight into it, nothing is copied from one chunk of the clip to the next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import UsageError

LAYOUT = torch.channels_last_3d


def _check(x: Tensor, gamma: Tensor) -> None:
    if x.dim() != 5 or not x.is_floating_point():
        raise UsageError(
            f"rms_norm_silu: x must be floating point [B, C, T, H, W]; got {x.dtype} "
            f"{list(x.shape)}; add the missing axes"
        )
    if gamma.dim() < 1 or gamma.shape[0] != x.shape[1] or gamma.numel() != x.shape[1]:
        raise UsageError(
            f"rms_norm_silu: gamma must hold one number for each of {x.shape[1]} channels, "
            f"[C] or [C, 1, ...]; got {list(gamma.shape)}; pass the layer's own"
        )
    if not gamma.is_floating_point():
        raise UsageError(f"rms_norm_silu: gamma must be floating point; got {gamma.dtype}; cast it")


def _check_ring(x: Tensor, ring: Tensor, first: int) -> None:
    batch, channels, frames, height, width = x.shape
    need = f"{x.dtype} [{batch}, {channels}, >= {frames}, {height}, {width}]"
    alike = ring.dtype == x.dtype and ring.dim() == 5
    if not alike or ring[:, :, :1].shape != x[:, :, :1].shape or ring.shape[2] < frames:
        raise UsageError(
            f"rms_norm_silu_into: ring must be {need}; got {ring.dtype} {list(ring.shape)}; "
            "allocate it for this layer and chunk"
        )
    if not ring.is_contiguous(memory_format=LAYOUT):
        raise UsageError(
            f"rms_norm_silu_into: ring must be channels last; got strides {list(ring.stride())}; "
            "allocate it with memory_format=torch.channels_last_3d"
        )
    if first < 0:
        raise UsageError(f"rms_norm_silu_into: first must be a frame number >= 0; got {first}")


def rms_norm_silu_ref(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    """Compute :func:`rms_norm_silu` in plain PyTorch, rounding where ``vae.RMSNorm`` does."""
    _check(x, gamma)
    wide = torch.promote_types(x.dtype, torch.float32)
    gain = gamma.to(wide).view(-1, 1, 1, 1) * x.shape[1] ** 0.5
    y = (F.normalize(x.to(wide), dim=1, eps=1e-12) * gain).to(x.dtype)
    return F.silu(y) if silu else y


@torch.library.custom_op("psssr_fast::rms_norm_silu", mutates_args=())
def rms_norm_silu(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    """Normalise over channels, ``y = x / max(|x|, 1e-12) * sqrt(C) * gamma``; then SiLU.

    Computed in fp32. The reference rounds ``y`` before SiLU, the kernel only rounds the result.

    Args:
        x: ``[B, C, T, H, W]``, floating point; read in place if it is channels last.
        gamma: a factor for each channel, ``[C]`` or ``[C, 1, ...]``, floating point.
        silu: apply ``y * sigmoid(y)``; the norm before attention goes without.

    Returns:
        Shape and dtype of ``x``, channels last.

    Raises:
        UsageError: shapes or dtypes are not as above.
    """
    return rms_norm_silu_ref(x, gamma, silu).contiguous(memory_format=LAYOUT)


@rms_norm_silu.register_kernel("cuda")
def _(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton

    _check(x, gamma)
    return rms_norm_silu_triton(x, gamma, silu)


@rms_norm_silu.register_fake
def _(x: Tensor, gamma: Tensor, silu: bool) -> Tensor:
    _check(x, gamma)
    return torch.empty_like(x, memory_format=LAYOUT)


@torch.library.custom_op("psssr_fast::rms_norm_silu_into", mutates_args={"ring"})
def rms_norm_silu_into(x: Tensor, gamma: Tensor, ring: Tensor, first: int, silu: bool) -> None:
    """Write :func:`rms_norm_silu` of ``x`` into a ring: frame ``t`` to slot ``(first + t) % R``.

    Args:
        x: as there; must not overlap ``ring``.
        gamma: as there.
        ring: ``[B, C, R, H, W]`` with ``R >= T``, dtype of ``x``, channels last. Its other slots
            are left alone.
        first: number of the clip's frame that ``x`` begins with.
        silu: as there.

    Raises:
        UsageError: shapes, dtypes or the ring's layout are not as above, or ``first`` is negative.
    """
    _check(x, gamma)
    _check_ring(x, ring, first)
    for t, frame in enumerate(rms_norm_silu_ref(x, gamma, silu).unbind(2)):
        ring[:, :, (first + t) % ring.shape[2]] = frame


@rms_norm_silu_into.register_kernel("cuda")
def _(x: Tensor, gamma: Tensor, ring: Tensor, first: int, silu: bool) -> None:
    from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_into_triton

    _check(x, gamma)
    _check_ring(x, ring, first)
    rms_norm_silu_into_triton(x, gamma, ring, first, silu)


@rms_norm_silu_into.register_fake
def _(x: Tensor, gamma: Tensor, ring: Tensor, first: int, silu: bool) -> None:
    _check(x, gamma)
    _check_ring(x, ring, first)
