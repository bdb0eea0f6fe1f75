"""xFormers' memory-efficient attention."""

from torch import Tensor

from psssr_fast.attention.backend import Attention, Backend, Problem, gpu_half_objections


def _objections(problem: Problem) -> list[str]:
    return gpu_half_objections(problem, "xformers", head_dim_limit=256)


def _load() -> Attention:
    from xformers.ops import memory_efficient_attention

    def attention_xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None, "objections() refuses masked problems"
        out: Tensor = memory_efficient_attention(q, k, v)
        return out

    return attention_xformers


XFORMERS = Backend("xformers", _objections, _load)
