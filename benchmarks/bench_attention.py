"""Every way of full attention that is usable here; what ``FASTEST`` in attention/sdpa.py is of."""

import pytest
import torch

from psssr_fast.attention import BACKENDS, Problem

HEADS, HEAD_DIM = 12, 128
MATH_LIMIT = 8192  # tokens: it writes every score


def _kernel(name: str):
    """PyTorch's kernels that no backend is made of."""
    aten = torch.ops.aten

    def attention(q, k, v, mask):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if name == "math":
            out = aten._scaled_dot_product_attention_math.default(q, k, v)
        else:
            out = aten._scaled_dot_product_efficient_attention.default(q, k, v, None, False)
        return out[0].transpose(1, 2)

    return attention


def _load(name: str, problem: Problem, tokens: int):
    if name == "efficient" and problem.device.type != "cuda":
        pytest.skip("a CUDA kernel")
    if name == "math" and tokens > MATH_LIMIT:
        pytest.skip(f"{tokens} tokens need {tokens**2 * HEADS * 2 / 2**30:.0f} GiB of scores")
    if name in ("efficient", "math"):
        return _kernel(name)
    (backend,) = (backend for backend in BACKENDS if backend.name == name)
    if objections := backend.objections(problem):
        pytest.skip("; ".join(objections))
    return backend.load()


@pytest.mark.parametrize("clip", ["720p", "1080p", "small"])
@pytest.mark.parametrize("name", [*(b.name for b in BACKENDS), "efficient", "math"])
def bench_attention(measure, name, clip, device):
    cuda = device.type == "cuda"
    tokens = {"720p": 28_800, "1080p": 65_280, "small": 4096 if cuda else 512}[clip]  # 29 frames
    if not cuda and clip != "small":
        pytest.skip("takes minutes on a CPU")
    attention = _load(name, Problem(device, torch.bfloat16, HEAD_DIM), tokens)
    q, k, v = torch.randn(3, 1, tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    measure(attention, q, k, v, None, flops=4 * tokens**2 * HEADS * HEAD_DIM)


@pytest.mark.parametrize(
    "name", [b.name for b in BACKENDS if "sdpa" in b.name or b.name == "triton"]
)
def bench_cross_attention(measure, name, device):
    """A clip to the 512 tokens of a prompt."""
    tokens = 28_800 if device.type == "cuda" else 512
    attention = _load(name, Problem(device, torch.bfloat16, HEAD_DIM), tokens)
    q = torch.randn(1, tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    k, v = torch.randn(2, 1, 512, HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    measure(attention, q, k, v, None, flops=4 * tokens * 512 * HEADS * HEAD_DIM)
