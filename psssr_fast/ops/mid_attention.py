"""Self-attention in the middle of the VAE: one head, as wide as the layer, frame by frame."""

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import UsageError


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 3 or not q.is_floating_point():
        raise UsageError(
            f"mid_attention: q must be floating point [frames, tokens, dim]; got {q.dtype} "
            f"{list(q.shape)}; flatten each frame's pixels into tokens"
        )
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape or x.dtype != q.dtype:
            raise UsageError(
                f"mid_attention: {name} is {x.dtype} {list(x.shape)}, q is {q.dtype} "
                f"{list(q.shape)}; all three must agree; split one projection into them"
            )


def mid_attention_ref(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute :func:`mid_attention` with SDPA, as ``FrameAttention`` does."""
    _check(q, k, v)
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


@torch.library.custom_op("psssr_fast::mid_attention", mutates_args=())
def mid_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend within each frame: ``softmax(q k^T / sqrt(dim)) v``.

    On a GPU, fp16 and bf16 of a width that is a multiple of 16 up to 384 run our kernel, which
    needs no memory but the output; all else runs SDPA, which has no flash kernel above 256.

    Args:
        q: queries, ``[frames, tokens, dim]``; floating point. Any strides; views of one
            ``[frames, tokens, 3 * dim]`` projection are read in place.
        k: keys, shape and dtype of ``q``.
        v: values, shape and dtype of ``q``.

    Returns:
        Contiguous ``[frames, tokens, dim]``, dtype of ``q``.

    Raises:
        UsageError: shapes or dtypes differ, or are not as above.
    """
    return mid_attention_ref(q, k, v).contiguous()


@mid_attention.register_kernel("cuda")
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from psssr_fast.kernels.mid_attention import mid_attention_triton, supports

    _check(q, k, v)
    if not supports(q):
        return mid_attention_ref(q, k, v).contiguous()
    return mid_attention_triton(q, k, v)


@mid_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    _check(q, k, v)
    return q.new_empty(q.shape)
