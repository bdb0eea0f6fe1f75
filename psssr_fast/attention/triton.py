"""This project's Triton kernel: full attention, and windows without copies or masks."""

from importlib.util import find_spec

import torch
from torch import Tensor

from psssr_fast.attention.backend import (
    Attention,
    Backend,
    Grid,
    Problem,
    WindowAttention,
    gpu_objections,
)
from psssr_fast.attention.sdpa import attention_sdpa
from psssr_fast.ops.window_attention import window_attention


def _objections(problem: Problem) -> list[str]:
    objections = gpu_objections(problem, (torch.float16, torch.bfloat16, torch.float32))
    if problem.head_dim % 16 or problem.head_dim > 256:
        objections.append(f"needs head_dim a multiple of 16, <= 256, got {problem.head_dim}")
    if find_spec("triton") is None:
        objections.append("package 'triton' is not installed")
    return objections


def attention_triton(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Full attention by the kernel; by SDPA where there is a mask or a gradient to compute, which
    the kernel has not."""
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if mask is not None or differentiable:
        return attention_sdpa(q, k, v, mask)
    whole = (1, 1, q.shape[1])
    return window_attention(q, k, v, whole, whole, (0, 0, 0), (0, 0, 0))


def windows_triton(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, window: Grid, shift: Grid
) -> Tensor:
    """Attention of every token to those of its window, by the kernel."""
    return window_attention(q, k, v, grid, window, shift, (0, 0, 0))


def _load() -> Attention:
    return attention_triton


def _load_windows() -> WindowAttention:
    return windows_triton


TRITON = Backend("triton", _objections, _load, _load_windows)
