"""Build psssr_fast: Python everywhere, plus ``psssr_fast._C`` where torch and a compiler are.

PSSSR_FAST_BUILD_EXT is ``auto`` (build the extension if possible), ``1`` (insist) or ``0`` (skip).
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
KERNELS = "psssr_fast.kernels"  # where the top-level kernels/ directory is mounted
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    # Compiled for OpenMP but not linked with it: its symbols come from the copy that torch has
    # loaded, and a second copy would start a second pool of threads.
    "-fopenmp",
    "-ffp-contract=off",  # a fused multiply-add rounds differently from PyTorch's reference
    "-fno-trapping-math",  # no result changes; comparisons may be vectorised
)


def version() -> str:
    """Read ``__version__`` without importing the package."""
    text = (ROOT / "psssr_fast/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit('psssr_fast/__init__.py has no line __version__ = "..."')
    return match[1]


def package_dirs() -> dict[str, str]:
    """Map every import package to the directory that holds it."""
    dirs = {name: name.replace(".", "/") for name in find_packages(include=["psssr_fast*"])}
    dirs[KERNELS] = "kernels"
    for name in find_packages("kernels"):
        dirs[f"{KERNELS}.{name}"] = "kernels/" + name.replace(".", "/")
    return dirs


def compiler() -> str | None:
    """Path of the C++ compiler that a build would use: ``$CXX``, or else the first known one."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return next(filter(None, map(shutil.which, named or COMPILERS)), None)


def obstacle() -> str | None:
    """Why the extension cannot be built here, with the remedy, or ``None`` if it can."""
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError:
        return (
            "torch is not importable in this build environment; install torch, then run: "
            "pip install --no-build-isolation -e ."
        )
    if compiler() is None:
        return f"no C++ compiler: $CXX or one of {', '.join(COMPILERS)} must be on PATH"
    return None


def extension() -> dict[str, Any]:
    """Describe ``psssr_fast._C`` to setuptools, or return nothing for a pure-Python build."""
    wanted = os.environ.get("PSSSR_FAST_BUILD_EXT", "auto")
    if wanted not in ("auto", "1", "0"):
        raise SystemExit(f"PSSSR_FAST_BUILD_EXT must be auto, 1 or 0; got {wanted!r}")
    if wanted == "0":
        return {}
    if reason := obstacle():
        if wanted == "1":
            raise SystemExit(f"PSSSR_FAST_BUILD_EXT=1, but {reason}")
        print(f"psssr_fast: building without the native extension: {reason}", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    extension = CppExtension(
        "psssr_fast._C",
        sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.cpp")),
        depends=sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.h")),
        extra_compile_args=list(FLAGS),
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


directories = package_dirs()
setup(
    version=version(),
    packages=list(directories),
    package_dir=directories,
    package_data={"psssr_fast": ["py.typed", "*.pyi", "weights/*"]},
    **extension(),
)
