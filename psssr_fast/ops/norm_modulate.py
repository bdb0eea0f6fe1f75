"""Adaptive layer norm: what every branch of a DiT block does first."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_modulate_ref(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, affine: bool = False
) -> Tensor:
    """Compute :func:`norm_modulate` as the model does: each step rounded, but for ``affine``."""
    if affine:  # nn.LayerNorm rounds once, after its weight and bias
        wide = torch.promote_types(x.dtype, torch.float32)
        normal = F.layer_norm(x.to(wide), x.shape[-1:], eps=eps)
        return (normal * scale[:, None].to(wide) + shift[:, None].to(wide)).to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]


@torch.library.custom_op("psssr_fast::norm_modulate", mutates_args=())
def norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, affine: bool = False
) -> Tensor:
    """Normalise each token of ``x``, then scale and shift it: ``norm(x) * (1 + scale) + shift``.

    ``norm(x) = (x - mean) / sqrt(variance + eps)`` over ``dim``. The kernel computes in fp32 and
    rounds once. Channels must be adjacent (others are copied first); tokens and clips may lie
    apart, so that ``shift`` and ``scale`` can be rows of a larger tensor of modulations.

    Args:
        x: ``[batch, tokens, dim]``; fp16, bf16 or fp32.
        shift: ``[batch, dim]``, dtype of ``x``.
        scale: ``[batch, dim]``, dtype of ``x``.
        eps: added to the variance.
        affine: multiply by ``scale`` itself, not ``1 + scale``: with ``weight.expand(batch, -1)``
            and ``bias.expand(batch, -1)`` this is ``nn.LayerNorm``.

    Returns:
        Contiguous ``[batch, tokens, dim]``, dtype of ``x``.

    Raises:
        UsageError: on CUDA, an operand has another shape or dtype.
    """
    return norm_modulate_ref(x, shift, scale, eps, affine).contiguous()


@norm_modulate.register_kernel("cuda")
def _(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, affine: bool = False) -> Tensor:
    from psssr_fast.kernels.norm_modulate import norm_modulate_triton

    return norm_modulate_triton(x, shift, scale, eps, affine)


@norm_modulate.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, affine: bool = False) -> Tensor:
    return x.new_empty(x.shape)
