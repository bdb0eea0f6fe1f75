"""How many bytes of memory each memory-bound kernel asks for, counted in the interpreter."""

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("accesses are counted in Triton's interpreter", allow_module_level=True)

from traffic import recorded

from psssr_fast.config import settings_for
from psssr_fast.kernels.flow_step import flow_step_triton
from psssr_fast.kernels.frequency_update import frequency_update_triton
from psssr_fast.kernels.gated_add import gated_add_triton
from psssr_fast.kernels.norm_modulate import norm_modulate_triton
from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton
from psssr_fast.kernels.rgb_to_yuv420 import rgb_to_yuv420_triton
from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton
from psssr_fast.ops._yuv import encoding
from psssr_fast.ops.frequency_update import separable_low_pass

L2 = 2**22  # bytes, a tenth of an A100's; the largest picture here is a quarter of 720p


def bf16(*shape):
    return torch.randn(shape).bfloat16()


def norm_modulate():
    x, shift, scale = bf16(1, 200, 1536), bf16(1, 1536), bf16(1, 1536)
    return (x, shift, scale), norm_modulate_triton(x, shift, scale)


def qk_norm_rope():
    q, k, weight = bf16(1, 100, 1536), bf16(1, 100, 1536), bf16(2, 1536)
    cos, sin = torch.randn(2, 100, 64)
    out = qk_norm_rope_triton(q, k, *weight, cos, sin, 12)
    return (q, k, weight, cos, sin), *out


def gated_add():
    x, y, gate = bf16(1, 200, 1536), bf16(1, 200, 1536), bf16(1, 1536)
    return (x, y, gate), gated_add_triton(x, y, gate)


def flow_step():
    z, v = bf16(1, 16, 4, 45, 80), bf16(1, 16, 4, 45, 80)
    return (z, v), *flow_step_triton(z, v, 0.7, 0.6)


def rms_norm_silu():
    x, gamma = bf16(1, 96, 2, 20, 64).contiguous(memory_format=torch.channels_last_3d), bf16(96)
    return (x, gamma), rms_norm_silu_triton(x, gamma, True)


def rgb_to_yuv420():
    picture = bf16(1, 3, 128, 256)
    return (picture,), *rgb_to_yuv420_triton(picture, encoding(1, False, 8), 8)


def frequency_update():
    consistent, sharp = torch.rand(2, 1, 3, 360, 640).bfloat16()
    settings = settings_for("released").frequency_update
    taps = separable_low_pass(settings.cutoff, settings.order)
    fused, _ = frequency_update_triton(
        consistent, sharp, *taps, strength=1.0, literal=True, border=0, eps=1e-8, detail=False
    )
    return (consistent, sharp), fused


CASES = [
    norm_modulate, qk_norm_rope, gated_add, flow_step, rms_norm_silu, rgb_to_yuv420,
    frequency_update,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_memory_moves_little_more_than_operands_and_results(case):
    with recorded() as traffic:
        operands, *results = case()
    read = sum(x.nbytes for x in operands)
    written = sum(x.nbytes for x in results)
    assert traffic.bytes_of("store") == written, "every result once"
    assert traffic.from_memory(L2) + traffic.bytes_of("store") <= 1.1 * (read + written)
