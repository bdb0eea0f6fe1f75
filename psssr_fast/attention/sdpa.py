"""PyTorch's own attention: every device, every dtype."""

import torch.nn.functional as F
from torch import Tensor

from psssr_fast.attention.backend import Attention, Backend


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention through :func:`torch.nn.functional.scaled_dot_product_attention`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # SDPA wants heads before tokens
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _load() -> Attention:
    return attention_sdpa


SDPA = Backend("sdpa", objections=lambda problem: [], load=_load)
