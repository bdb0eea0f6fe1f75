from unittest.mock import patch

import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.models.vae import FrameAttention
from psssr_fast.ops.mid_attention import mid_attention, mid_attention_ref
from psssr_fast.testing import assert_as_accurate

MUTATIONS = [
    ("< tokens - start", "< KEYS"),
    ("total * shrink +", "total +"),
    ("mixed[i] * shrink[:, None]", "mixed[i]"),
    ("(frame.to(tl.int64) * tokens + row)", "row"),
    ("i * WIDTH, v_token", "0, v_token"),
    ("dim**-0.5", "1.0"),
    ("k += frame.to(tl.int64) * k_frame", "pass"),
    ("inside &= columns < DIM - column", "pass"),
]
# bf16 matrix products are silently wrong in Triton's interpreter
DTYPES = [torch.float16] + [torch.bfloat16] * torch.cuda.is_available()


def architectures(device) -> list[int]:
    """Whose launches to test: both in the interpreter, the GPU's own (0) on a GPU."""
    return [90, 80] if torch.device(device).type == "cpu" else [0]


def run(q, k, v, arch):
    """The kernel as it is launched on an architecture."""
    from psssr_fast.kernels import mid_attention as kernel

    if not arch:
        return kernel.mid_attention_triton(q, k, v)
    with patch.object(kernel, "architecture", lambda tensor: arch):
        return kernel.mid_attention_triton(q, k, v)


def compare(q, k, v, device):
    eager = mid_attention_ref(q, k, v)
    exact = mid_attention_ref(q.double(), k.double(), v.double())
    for arch in architectures(device):
        assert_as_accurate(run(q, k, v, arch), eager, exact)


def check(shape=(2, 150, 144), dtype=torch.float16, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it.

    All scores are far below zero, so a key that is not there would outweigh those that are.
    """
    frames, tokens, dim = shape
    qkv = torch.randn(frames, tokens, 3 * dim, device=device)
    qkv[..., :dim] += 1.5
    qkv[..., dim : 2 * dim] -= 1.5
    # what lies behind the channels and the last frame must not be read
    beyond = torch.full((frames + 1, tokens, 3 * dim + 16), 99.0, device=device)
    beyond[:frames, :, : 3 * dim] = qkv
    q, k, v = beyond.to(dtype)[:frames, :, : 3 * dim].chunk(3, dim=-1)
    compare(q, k, v, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 64), (3, 70, 16), (1, 129, 80), (2, 33, 256), (1, 135, 384), (2, 65, 272)],
    ids=str,
)
def test_mid_attention(shape, dtype, device):
    check(shape, dtype, device)


@pytest.mark.parametrize("slope", [-40, 40])
def test_the_highest_score_can_come_first_or_last(slope, device):
    """Scores from -640 to 640 along the keys: exponentials pass the range of fp32 both ways."""
    q = torch.ones(1, 40, 256, dtype=torch.float16, device=device)
    rising = torch.linspace(-1, 1, 150, device=device)[None, :, None] * slope
    k = rising.to(torch.float16).expand(1, 150, 256).contiguous()
    v = torch.randn(1, 150, 256, device=device).half()
    q = torch.cat([q, q, q, q], dim=1)[:, :150]
    compare(q, k, v, device)


def test_equal_scores_average(device):
    q = torch.zeros(1, 77, 64, dtype=torch.float16, device=device)
    v = torch.randn(1, 77, 64, device=device).half()
    for arch in architectures(device):
        assert_as_accurate(
            run(q, q, v, arch),
            mid_attention_ref(q, q, v),
            v.double().mean(1, keepdim=True).expand(v.shape),
        )


def test_another_frame_does_not_leak(device):
    """Not even through 0 * inf: a frame ends in the middle of a block."""
    q, k, v = torch.randn(3, 2, 50, 64, device=device).half()
    for arch in architectures(device):
        expected = run(q, k, v, arch)[0]
        broken = v.clone()
        broken[1] = float("inf")
        assert torch.equal(run(q, k, broken, arch)[0], expected)


def test_rows_that_cannot_be_addressed_are_copied(device):
    q, k, v = torch.randn(3, 2, 31, 36, device=device).half()
    views = [x[..., 3:35] for x in (q, k, v)]  # rows start at no multiple of 16 bytes
    views[1] = views[1].mT.contiguous().mT  # tokens innermost
    views[2] = views[2][:, :1].expand(2, 31, 32)
    for arch in architectures(device):
        expected = run(*(x.clone() for x in views), arch)
        assert torch.equal(run(*views, arch), expected)


def test_nothing_is_nothing(device):
    q = torch.empty(2, 0, 64, dtype=torch.float16, device=device)
    for arch in architectures(device):
        assert run(q, q, q, arch).shape == q.shape


def test_the_op_is_what_the_model_computes():
    block = FrameAttention(8)
    x = torch.randn(2, 8, 3, 4, 5)
    frames = x.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        q, k, v = block.to_qkv(block.norm(frames)).flatten(2).mT.chunk(3, dim=-1)
        mixed = mid_attention(q, k, v).mT.reshape(frames.shape)
        out = x + block.proj(mixed).unflatten(0, (2, 3)).transpose(1, 2)
        assert torch.equal(out, block(x))


def test_op_is_registered_correctly(device):
    qkv = torch.randn(2, 7, 96, device=device)
    torch.library.opcheck(mid_attention, qkv.chunk(3, dim=-1))
    torch.library.opcheck(mid_attention, tuple(qkv.mT.contiguous().mT.chunk(3, dim=-1)))


def test_every_dtype_and_width_runs_somewhere(device):
    for dtype, dim in [
        (torch.float32, 64),
        (torch.float64, 64),
        (torch.float16, 24),
        (torch.float16, 400),
    ]:
        q, k, v = torch.randn(3, 1, 5, dim, device=device).to(dtype)
        assert torch.equal(mid_attention(q, k, v), mid_attention_ref(q, k, v))


def test_bad_operands_are_refused(device):
    from psssr_fast.kernels.mid_attention import mid_attention_triton

    q = torch.randn(1, 5, 32, device=device)
    with pytest.raises(UsageError, match=r"got torch.float32 \[5, 32\]; flatten"):
        mid_attention(q[0], q[0], q[0])
    with pytest.raises(UsageError, match=r"k is torch.float32 \[1, 4, 32\], q is"):
        mid_attention(q, q[:, :4], q)
    with pytest.raises(UsageError, match=r"v is torch\.float16"):
        mid_attention(q, q, q.half())
    with pytest.raises(UsageError, match="needs float16 or bfloat16"):
        mid_attention_triton(q, q, q)
    with pytest.raises(UsageError, match="with dim 24"):
        mid_attention_triton(*q.half()[..., :24].expand(3, 1, 5, 24))
