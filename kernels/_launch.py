"""What every Triton launcher here asks before it launches."""

import triton
from torch import Tensor

INTERPRETED_ARCHITECTURE = 90  # whose code path the interpreter runs


def architecture(tensor: Tensor) -> int:
    """Compute capability of the device that will run the kernel, as one number: 80, 90, 100.

    A compile-only driver (see ``tests/compile_only.py``) answers for a device that is not there,
    and the interpreter for none.
    """
    if triton.knobs.runtime.interpret and not tensor.is_cuda:
        return INTERPRETED_ARCHITECTURE
    arch: int = triton.runtime.driver.active.get_current_target().arch
    return arch


def has_tma(tensor: Tensor) -> bool:
    """Whether tensors can be fetched by descriptor: Hopper's copy engine, and later."""
    return architecture(tensor) >= 90
