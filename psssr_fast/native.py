"""Whether ``psssr_fast._C``, the compiled CPU kernels, can be used; nothing else decides it.

The extension is optional: without it every op runs its PyTorch reference. ``psssr doctor`` prints
what :func:`native_problem` says.
"""

import functools
import warnings
from importlib import import_module
from importlib.util import find_spec

import torch  # noqa: F401  (the extension links against libraries that this loads)

REMEDY = "in the source: PSSSR_FAST_BUILD_EXT=1 pip install --no-build-isolation --no-deps -e ."


@functools.cache
def native_problem() -> str | None:
    """Why the compiled kernels cannot be used, with the remedy, or ``None`` when they can.

    An extension that is there but does not load, as after an upgrade of torch, is also reported
    as a ``RuntimeWarning``, once.
    """
    if find_spec("psssr_fast._C") is None:
        return f"psssr_fast._C was not built; to build it, {REMEDY}"
    try:
        import_module("psssr_fast._C")
    except ImportError as error:
        problem = f"psssr_fast._C does not load ({error}); to rebuild it, {REMEDY}"
        warnings.warn(f"the PyTorch references run, because {problem}", RuntimeWarning, 2)
        return problem
    return None


def native_available() -> bool:
    """Whether the CPU kernels of ``psssr_fast._C`` are in use."""
    return native_problem() is None
