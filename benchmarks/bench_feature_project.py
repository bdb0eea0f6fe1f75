import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.ops.feature_project import cached_projection, feature_project


def eager(f: Tensor, h: Tensor, weight: Tensor, bias: Tensor, cached: Tensor) -> Tensor:
    """What the model does at every step."""
    return F.linear(torch.cat([f, h], dim=-1), weight, bias)


def library(f: Tensor, h: Tensor, weight: Tensor, bias: Tensor, cached: Tensor) -> Tensor:
    """The cached part added by the library's matrix product."""
    return torch.addmm(cached[0], h[0], weight[:, h.shape[-1] :].T)


def fused(f: Tensor, h: Tensor, weight: Tensor, bias: Tensor, cached: Tensor) -> Tensor:
    return feature_project(h, weight[:, h.shape[-1] :], cached)


@pytest.mark.parametrize("fn", [eager, library, fused], ids=["eager", "addmm", "fused"])
def bench_feature_project(measure, fn, device):
    """Rates count the work of the cached form: eager does twice as much."""
    cuda = device.type == "cuda"
    tokens, dim = (28_800, 1536) if cuda else (450, 1536)  # 29 frames of 720x1280, 90x160
    f, h = torch.randn(2, 1, tokens, dim, device=device).bfloat16()
    weight = (torch.randn(dim, 2 * dim, device=device) / dim**0.5).bfloat16()
    bias = torch.zeros(dim, device=device).bfloat16()
    cached = cached_projection(f, weight, bias)
    moved = h.nbytes + 2 * cached.nbytes + weight.nbytes // 2
    measure(fn, f, h, weight, bias, cached, flops=2 * tokens * dim * dim, bytes_moved=moved)
