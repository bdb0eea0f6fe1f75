"""Choose an attention backend once, when a model is loaded."""

import torch

from psssr_fast.attention.backend import Attention, Backend, Problem
from psssr_fast.attention.flash import FLASH2, FLASH3
from psssr_fast.attention.sdpa import SDPA
from psssr_fast.attention.xformers import XFORMERS
from psssr_fast.errors import UsageError

BACKENDS: tuple[Backend, ...] = (FLASH3, FLASH2, XFORMERS, SDPA)


def choose_backend(problem: Problem, name: str = "auto") -> Backend:
    """The backend that will run.

    ``"auto"`` is PyTorch's SDPA, which needs nothing installed and picks cuDNN or flash kernels
    itself; the others are chosen by name.

    Raises:
        UsageError: the named backend does not exist or cannot solve ``problem``; says why, and
            which ones can.
    """
    if name == "auto":
        return SDPA
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


def select_attention(problem: Problem, name: str = "auto") -> tuple[str, Attention]:
    """Load a backend and prove it with one tiny call; return its name and its function.

    Raises:
        UsageError: it cannot be chosen, imported, or does not run here.
    """
    backend = choose_backend(problem, name)
    if backend is SDPA:
        return backend.name, backend.load()
    try:
        attention = backend.load()
        probe = torch.zeros(1, 1, 1, problem.head_dim, dtype=problem.dtype, device=problem.device)
        attention(probe, probe, probe, None)
    except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
        raise UsageError(
            f"attention={backend.name!r} is installed but does not run {problem}: {error}. "
            "Use 'auto'."
        ) from error
    return backend.name, attention
