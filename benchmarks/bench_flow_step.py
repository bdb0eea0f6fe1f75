import pytest
import torch

from psssr_fast.ops.flow_step import flow_step, flow_step_ref


@pytest.mark.parametrize("fn", [flow_step_ref, flow_step], ids=["eager", "fused"])
def bench_flow_step(measure, fn, device):
    shape = (1, 16, 8, 90, 160)  # latents of 29 frames of 720x1280
    latents, velocity = torch.randn(2, *shape, device=device).bfloat16()
    measure(fn, latents, velocity, 0.69982, 0.60031, bytes_moved=4 * latents.nbytes)
