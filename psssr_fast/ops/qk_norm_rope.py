"""Queries and keys made ready for attention: RMS norm over the full width, then rotation."""

import torch
from torch import Tensor

from psssr_fast.native import native_available


def qk_norm_rope_ref(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`qk_norm_rope` as the model does: mean and rotation in fp32 (or fp64)."""
    return (
        _norm_rope(q, q_weight, cos, sin, heads, eps),
        _norm_rope(k, k_weight, cos, sin, heads, eps),
    )


def _norm_rope(
    x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float
) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    normal = ((wide * scale).to(x.dtype) * weight).unflatten(-1, (heads, -1))
    if cos is None or sin is None:
        return normal
    even, odd = normal.to(wide.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


@torch.library.custom_op("psssr_fast::qk_norm_rope", mutates_args=())
def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Normalise queries and keys over the full width, then rotate adjacent pairs of channels.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight``, split into heads; of each head's pair ``i`` at
    token ``n``, ``(a, b)`` becomes ``(a cos - b sin, a sin + b cos)`` with ``cos[n, i]``,
    ``sin[n, i]``. The kernel computes in fp32 and rounds once. Channels must be adjacent (others
    are copied first); tokens and clips may lie apart, so that ``q`` and ``k`` can be slices of
    one fused projection ``[batch, tokens, 3 dim]``.

    Args:
        q: queries, ``[batch, tokens, dim]``; fp16, bf16 or fp32.
        k: keys, shape and dtype of ``q``; without rotation they may be of other tokens, or none.
        q_weight: of the queries' norm, ``[dim]``, dtype of ``q``.
        k_weight: of the keys' norm, likewise.
        cos: fp32 ``[tokens, dim / heads / 2]``; ``None`` (with ``sin``) leaves the rotation out,
            as cross-attention does.
        sin: likewise.
        heads: attention heads; ``dim / heads`` is even.
        eps: added to the mean square.

    Returns:
        Queries and keys, contiguous ``[batch, tokens, heads, dim / heads]``, dtype of ``q``.

    Raises:
        UsageError: on CUDA, an operand has another shape or dtype.
    """
    out = qk_norm_rope_ref(q, k, q_weight, k_weight, cos, sin, heads, eps)
    return out[0].contiguous(), out[1].contiguous()


@qk_norm_rope.register_kernel("cuda")
def _(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton

    return qk_norm_rope_triton(q, k, q_weight, k_weight, cos, sin, heads, eps)


@qk_norm_rope.register_fake
def _(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    head_dim = q.shape[2] // heads
    return (
        q.new_empty(q.shape[0], q.shape[1], heads, head_dim),
        k.new_empty(k.shape[0], k.shape[1], heads, head_dim),
    )


if native_available():

    @qk_norm_rope.register_kernel("cpu")
    def _(
        q: Tensor,
        k: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        heads: int,
        eps: float = 1e-6,
    ) -> tuple[Tensor, Tensor]:
        if q.dtype not in (torch.float32, torch.bfloat16) or q.shape[2] % (2 * heads):
            return qk_norm_rope_ref(q, k, q_weight, k_weight, cos, sin, heads, eps)
        return (
            _norm_rope_natively(q, q_weight, cos, sin, heads, eps),
            _norm_rope_natively(k, k_weight, cos, sin, heads, eps),
        )


def _norm_rope_natively(
    x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float
) -> Tensor:
    """Run ``csrc/qk_norm_rope.cpp``."""
    from psssr_fast import _C

    cos, sin = (None if table is None else table.contiguous() for table in (cos, sin))
    x = x if x.stride(2) == 1 else x.contiguous()
    return _C.qk_norm_rope(x, weight.contiguous(), cos, sin, heads, eps)
