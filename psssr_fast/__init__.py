"""psssr_fast: a fast, trustworthy runtime for PS-SR video super-resolution.

Importing this package defines names and nothing else: torch is loaded when :class:`Upscaler` is
first touched.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psssr_fast.upscaler import Upscaler

__version__ = "0.1.0"
__all__ = ["Upscaler", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Upscaler":
        from psssr_fast.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module 'psssr_fast' has no attribute {name!r}")
