"""Choose an attention backend once, when a model is loaded."""

import logging
from importlib.util import find_spec
from subprocess import CalledProcessError
from typing import NamedTuple

import torch

from psssr_fast.attention.backend import Attention, Backend, Problem, WindowAttention
from psssr_fast.attention.flash import FLASH2, FLASH3
from psssr_fast.attention.sdpa import SDPA, SDPA_CUDNN, SDPA_FLASH, fastest_kernel
from psssr_fast.attention.triton import TRITON
from psssr_fast.attention.xformers import XFORMERS
from psssr_fast.errors import UsageError

BACKENDS: tuple[Backend, ...] = (
    FLASH3, FLASH2, XFORMERS, TRITON, SDPA_CUDNN, SDPA_FLASH, SDPA,
)  # fmt: skip
logger = logging.getLogger(__name__)


class Selected(NamedTuple):
    """What runs.

    Attributes:
        name: of the backend.
        attention: its function.
        windows: how it attends in windows, if it has a way that needs neither copies nor masks.
    """

    name: str
    attention: Attention
    windows: WindowAttention | None


def preferred_backends(problem: Problem, name: str = "auto") -> list[Backend]:
    """What ``"auto"`` and ``"sdpa"`` try, in this order.

    For a model with attention windows, ``"auto"`` on a GPU is the Triton kernel, which reads them
    in place. Otherwise both are PyTorch's attention: the kernel that was measured to be the
    fastest on this GPU, if one is known, or whichever PyTorch chooses.
    """
    backends = []
    if name == "auto" and problem.masked and problem.device.type == "cuda":
        backends.append(TRITON)
    fastest = fastest_kernel(problem)
    backends += [backend for backend in BACKENDS if backend.name == fastest]
    return [*backends, SDPA]


def choose_backend(problem: Problem, name: str = "auto") -> Backend:
    """The backend that will run, as far as can be told without running it.

    ``"auto"`` and ``"sdpa"`` are explained in :func:`preferred_backends`, and need nothing that
    is not installed; any other name is that backend and none else.

    Raises:
        UsageError: the named backend does not exist or cannot solve ``problem``; says why, and
            which ones can.
    """
    if name in ("auto", SDPA.name):
        backends = preferred_backends(problem, name)
        return next(backend for backend in backends if not backend.objections(problem))
    objections = {backend.name: backend.objections(problem) for backend in BACKENDS}
    for backend in BACKENDS:
        if backend.name == name and not objections[name]:
            return backend
    reasons = objections.get(name, [f"there is no such backend; known: {', '.join(objections)}"])
    usable = ", ".join(name for name, reasons in objections.items() if not reasons)
    raise UsageError(
        f"attention={name!r} cannot run {problem}: {'; '.join(reasons)}. "
        f"Usable here: {usable}, or 'auto'."
    )


def select_attention(problem: Problem, name: str = "auto") -> Selected:
    """Load a backend and prove it with one small call.

    What ``"auto"`` or ``"sdpa"`` would rather run, but cannot, is logged with the reason.

    Raises:
        UsageError: it cannot be chosen, imported, or does not run here.
    """
    if name not in ("auto", SDPA.name):
        backend = choose_backend(problem, name)
        try:
            return _prove(backend, problem)
        except _failures() as error:
            raise UsageError(
                f"attention={backend.name!r} is installed but does not run {problem}: "
                f"{_one_line(error)}. Use 'auto'."
            ) from error
    for backend in preferred_backends(problem, name):
        reasons = backend.objections(problem)
        if not reasons:
            try:
                return _prove(backend, problem)
            except _failures() as error:
                reasons = [_one_line(error)]
        logger.warning("attention %s cannot run %s: %s", backend.name, problem, "; ".join(reasons))
    raise AssertionError("SDPA always runs")


def _prove(backend: Backend, problem: Problem) -> Selected:
    """Load a backend and call it on 128 tokens of 2 heads; PyTorch's default needs no proof.

    Raises:
        RuntimeError: the mean of equal values is another value.
        Exception: whatever of :func:`_failures` its package raises.
    """
    attention = backend.load()
    windows = backend.load_windows() if backend.load_windows else None
    selected = Selected(backend.name, attention, windows)
    if backend is SDPA:
        return selected
    shape = (1, 128, 2, problem.head_dim)
    q = torch.zeros(shape, dtype=problem.dtype, device=problem.device)
    v = torch.ones_like(q)
    if problem.masked and windows is not None:
        out = windows(q, q, v, (2, 8, 8), (2, 4, 4), (0, 2, 2))
    else:
        out = attention(q, q, v, None)
    if out.shape != v.shape or not ((out - v).abs() < 0.01).all():
        raise RuntimeError("it computes wrong numbers")
    return selected


def _failures() -> tuple[type[Exception], ...]:
    """What is raised by packages that cannot be imported, compiled or run here."""
    python = (
        ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError,
        CalledProcessError,
    )  # fmt: skip
    if find_spec("triton") is None:
        return python
    from triton.errors import TritonError

    return (*python, TritonError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
