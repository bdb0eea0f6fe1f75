"""What every Triton launcher here asks before it launches."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import triton
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

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


def launcher(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make the first argument's GPU the current one: Triton launches on that."""

    @wraps(function)
    def on_its_device(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        first = args[0] if args else next(iter(kwargs.values()))
        assert isinstance(first, Tensor)
        if not first.is_cuda:
            return function(*args, **kwargs)
        with torch.cuda.device(first.device):
            return function(*args, **kwargs)

    return on_its_device
