"""FlashAttention-2 (Ampere and later) and FlashAttention-3 (Hopper)."""

from torch import Tensor

from psssr_fast.attention.backend import (
    Attention,
    Backend,
    Problem,
    compute_capability,
    gpu_half_objections,
)


def _objections_flash2(problem: Problem) -> list[str]:
    return gpu_half_objections(problem, "flash_attn", head_dim_limit=256)


def _load_flash2() -> Attention:
    from flash_attn import flash_attn_func

    def attention_flash2(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None, "objections() refuses masked problems"
        out: Tensor = flash_attn_func(q, k, v)
        return out

    return attention_flash2


def _objections_flash3(problem: Problem) -> list[str]:
    objections = gpu_half_objections(problem, "flash_attn_interface", head_dim_limit=256)
    capability = compute_capability(problem)
    if capability is not None and capability[0] != 9:
        objections.append(f"needs compute capability 9.x (Hopper), got {capability[0]}.x")
    return objections


def _load_flash3() -> Attention:
    from flash_attn_interface import flash_attn_func

    def attention_flash3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None, "objections() refuses masked problems"
        out = flash_attn_func(q, k, v)
        first: Tensor = out[0] if isinstance(out, tuple) else out  # older releases add the LSE
        return first

    return attention_flash3


FLASH2 = Backend("flash2", _objections_flash2, _load_flash2)
FLASH3 = Backend("flash3", _objections_flash3, _load_flash3)
