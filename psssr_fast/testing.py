"""Numerical assertions shared by tests/ and benchmarks/."""

import torch
from torch import Tensor


def assert_as_accurate(actual: Tensor, eager: Tensor, exact: Tensor, slack: float = 2.0) -> None:
    """Assert that a kernel is as accurate as PyTorch: no tolerance is chosen by hand.

    Args:
        actual: the kernel's output.
        eager: the reference run in the kernel's dtype.
        exact: the reference run in fp64 on the same inputs.
        slack: how many times eager's worst error is allowed, on top of one rounding of the output.

    Raises:
        AssertionError: the kernel is less accurate, not finite, or of another shape or dtype.
    """
    assert (actual.shape, actual.dtype) == (eager.shape, eager.dtype)
    assert exact.shape == eager.shape
    assert actual.isfinite().all(), "the kernel wrote non-finite values, or left output unwritten"
    rounding = torch.finfo(actual.dtype).eps * exact.abs().max().item()
    bound = slack * (eager.double() - exact).abs().max().item() + rounding
    error = (actual.double() - exact).abs().max().item()
    assert error <= bound, f"max error {error:.3e} exceeds {bound:.3e}"
