import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.ops.flow_step import flow_step, flow_step_ref
from psssr_fast.testing import assert_as_accurate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIGMAS = (0.69982, 0.60031)
MUTATIONS = [
    ("inside = index < size", "inside = index < size - 1"),
    ("latents - sigma * velocity", "latents - step * velocity"),
    ("latents - step * velocity", "latents + step * velocity"),
    ("float(sigma - sigma_next)", "float(sigma_next)"),
    ("tl.program_id(0).to(tl.int64) * BLOCK", "0"),
]


def compare(latents, velocity, sigma, sigma_next):
    from psssr_fast.kernels.flow_step import flow_step_triton

    found = flow_step_triton(latents, velocity, sigma, sigma_next)
    eager = flow_step_ref(latents, velocity, sigma, sigma_next)
    exact = flow_step_ref(latents.double(), velocity.double(), sigma, sigma_next)
    for index in range(2):
        assert found[index].is_contiguous()
        assert_as_accurate(found[index], eager[index], exact[index])


def check(shape=(1, 3, 5, 9, 11), dtype=torch.float32, device="cpu"):
    """The kernel against its reference; tests/test_mutations.py breaks the kernel under it."""
    latents, velocity = torch.randn(2, *shape, device=device).to(dtype)
    compare(latents, velocity, *SIGMAS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (0, 4), (2, 16, 1, 8, 8), (1, 16, 3, 11, 13)], ids=str)
def test_flow_step(shape, dtype, device):
    if torch.Size(shape).numel():
        check(shape, dtype, device)
    else:
        empty = torch.zeros(shape, dtype=dtype, device=device)
        assert [out.shape for out in flow_step(empty, empty, *SIGMAS)] == [shape, shape]


@pytest.mark.parametrize(("sigma", "sigma_next"), [(1, 0), (0.5, 0.5), (0.0, 0.0)])
def test_ends_of_the_path(sigma, sigma_next, device):
    latents, velocity = torch.randn(2, 3, 40, device=device)
    compare(latents, velocity, sigma, sigma_next)


def test_operands_apart(device):
    latents, velocity = torch.randn(2, 6, 5, 4, device=device)
    compare(latents.mT, velocity.permute(0, 2, 1), *SIGMAS)
    compare(latents[::2], velocity.mT.contiguous().mT[::2], *SIGMAS)


def test_moves_along_the_straight_line():
    start, velocity = torch.randn(2, 1, 16, 2, 4, 4, dtype=torch.float64)
    sigma, sigma_next = SIGMAS
    estimate, next_latents = flow_step_ref(start + sigma * velocity, velocity, sigma, sigma_next)
    torch.testing.assert_close(estimate, start)
    torch.testing.assert_close(next_latents, start + sigma_next * velocity)


def test_op_is_registered_correctly(device):
    latents, velocity = torch.randn(2, 1, 4, 2, 3, 5, device=device)
    torch.library.opcheck(flow_step, (latents.mT.contiguous().mT, velocity, *SIGMAS))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latents": torch.zeros(4, 4, dtype=torch.float64)}, "latents is"),
        ({"velocity": torch.zeros(4, 1)}, "velocity is"),
        ({"velocity": torch.zeros(4, 4, dtype=torch.bfloat16)}, "velocity is"),
    ],
    ids=str,
)
def test_refuses_operands_that_do_not_fit(change, named):
    from psssr_fast.kernels.flow_step import flow_step_triton

    right = {"latents": torch.zeros(4, 4), "velocity": torch.zeros(4, 4)}
    with pytest.raises(UsageError, match=f"flow_step: {named}"):
        flow_step_triton(**{**right, **change}, sigma=0.7, sigma_next=0.6)
