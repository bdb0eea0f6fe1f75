"""PyTorch's own attention: every device, every dtype; on GPUs, which of its kernels.

A kernel is called directly, because asking ``scaled_dot_product_attention`` for one
(``torch.nn.attention.sdpa_kernel``) changes flags of the whole process.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.attention.backend import (
    Attention,
    Backend,
    Problem,
    compute_capability,
    gpu_half_objections,
)

# Older releases are wrong where tokens are no multiple of 128 (pytorch issue 169849).
CUDNN_VERSION = 91501


@dataclass(frozen=True)
class Fastest:
    """Which of PyTorch's half-precision kernels was measured to be the fastest.

    Attributes:
        capability: major compute capability.
        head_dim: up to which this was found.
        backend: its name.
    """

    capability: int
    head_dim: int
    backend: str


FASTEST = (
    # A100: cuDNN at 0.82 times flash (transformers pull request 48163), 135 beside 136 TFLOP/s
    # (pytorch 192799). On 8.6 and 8.9 these two disagree: 0.93 and 1.00 times, or 1.23 times.
    Fastest(8, 256, "sdpa-flash"),
    # H100, head_dim 128: cuDNN 631, flash 329 TFLOP/s (pytorch issue 142132).
    Fastest(9, 128, "sdpa-cudnn"),
    # B200: cuDNN at 1.24 to 1.98 times even FlashAttention-4 (sglang pull request 33655).
    Fastest(10, 128, "sdpa-cudnn"),
)


def fastest_kernel(problem: Problem) -> str | None:
    """The backend that :data:`FASTEST` names; ``None`` leaves the choice to PyTorch."""
    capability = compute_capability(problem)
    half = problem.dtype in (torch.float16, torch.bfloat16)
    if capability is None or problem.masked or not half:
        return None
    for row in FASTEST:
        if row.capability == capability[0] and problem.head_dim <= row.head_dim:
            return row.backend
    return None


def _heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in tensors)


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention through :func:`torch.nn.functional.scaled_dot_product_attention`."""
    q, k, v = _heads_first(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attention_sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention by cuDNN's kernel."""
    assert mask is None, "objections() refuses masked problems"
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    kernel = torch.ops.aten._scaled_dot_product_cudnn_attention.default
    out: Tensor = kernel(*_heads_first(q, k, v), None, compute_log_sumexp=differentiable)[0]
    return out.transpose(1, 2)


def attention_sdpa_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention by the FlashAttention-2 that PyTorch contains."""
    assert mask is None, "objections() refuses masked problems"
    kernel = torch.ops.aten._scaled_dot_product_flash_attention.default
    out: Tensor = kernel(*_heads_first(q, k, v))[0]
    return out.transpose(1, 2)


def _objections_cudnn(problem: Problem) -> list[str]:
    objections = gpu_half_objections(problem, None, head_dim_limit=128, multiple=8)
    version = torch.backends.cudnn.version() if problem.device.type == "cuda" else CUDNN_VERSION
    if version is None:
        objections.append("this build of torch has no cuDNN")
    elif version < CUDNN_VERSION:
        objections.append(f"needs cuDNN {CUDNN_VERSION} or later, got {version}")
    return objections


def _objections_flash(problem: Problem) -> list[str]:
    return gpu_half_objections(problem, None, head_dim_limit=256, multiple=8)


def _load() -> Attention:
    return attention_sdpa


def _load_cudnn() -> Attention:
    return attention_sdpa_cudnn


def _load_flash() -> Attention:
    return attention_sdpa_flash


SDPA = Backend("sdpa", objections=lambda problem: [], load=_load)
SDPA_CUDNN = Backend("sdpa-cudnn", _objections_cudnn, _load_cudnn)
SDPA_FLASH = Backend("sdpa-flash", _objections_flash, _load_flash)
