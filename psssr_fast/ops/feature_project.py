"""How a draft block takes in the base's feature, without projecting it again at every step.

The model computes ``fc([f, h]) = [f, h] W.T + b``. With ``W = [W_f, W_h]`` this is
``h W_h.T + (f W_f.T + b)``, and the bracket is the same at every step of a window: the feature is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cached_projection(feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The part of the projection that no step changes: ``f W_f.T + b``.

    Args:
        feature: what the base kept, ``[batch, tokens, dim]``.
        weight: of the whole projection, ``[out_dim, 2 dim]``; its first half is used here.
        bias: ``[out_dim]``.

    Returns:
        ``[batch, tokens, out_dim]``: the ``cached`` of :func:`feature_project`.
    """
    return F.linear(feature, weight[:, : feature.shape[-1]], bias)


def feature_project_ref(h: Tensor, weight: Tensor, cached: Tensor) -> Tensor:
    """Compute :func:`feature_project` in plain PyTorch, product and sum each rounded."""
    return F.linear(h, weight) + cached


@torch.library.custom_op("psssr_fast::feature_project", mutates_args=())
def feature_project(h: Tensor, weight: Tensor, cached: Tensor) -> Tensor:
    """Project the hidden state and add what the feature contributes: ``h W_h.T + cached``.

    The kernel accumulates in fp32, adds there and rounds once.

    Args:
        h: hidden state of the draft, ``[batch, tokens, dim]``; fp16, bf16 or fp32.
        weight: ``[out_dim, dim]``, dtype of ``h``; rows may lie apart, so that it can be the
            second half of the whole projection, ``fc.weight[:, dim:]``.
        cached: ``[batch, tokens, out_dim]``, dtype of ``h``; see :func:`cached_projection`.

    Returns:
        Contiguous ``[batch, tokens, out_dim]``, dtype of ``h``.

    Raises:
        UsageError: on CUDA, an operand has another shape or dtype.
    """
    return feature_project_ref(h, weight, cached).contiguous()


@feature_project.register_kernel("cuda")
def _(h: Tensor, weight: Tensor, cached: Tensor) -> Tensor:
    from psssr_fast.kernels.feature_project import feature_project_triton

    return feature_project_triton(h, weight, cached)


@feature_project.register_fake
def _(h: Tensor, weight: Tensor, cached: Tensor) -> Tensor:
    return h.new_empty(h.shape[0], h.shape[1], weight.shape[0])
