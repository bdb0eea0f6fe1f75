"""How a window is computed, which is not what is computed: no field here changes the picture."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """How much of a window is in memory at once.

    All executions compute the same function, but for the rounding of a library that chooses
    another kernel for another batch size.

    Attributes:
        batched_decodes: decode the base's and the last draft's latents as one batch.
        frames: frames that are resized and updated at once; ``None`` is all of a window.
        graphs: replay captured CUDA graphs, which keep their memory.
        offload: networks wait on the CPU while others run, and so does the clip around a tile.
    """

    batched_decodes: bool = False
    frames: int | None = None
    graphs: bool = True
    offload: bool = False

    def slices(self, count: int) -> Iterator[slice]:
        """``count`` frames, as many at a time as this execution allows."""
        step = self.frames or max(1, count)
        return (slice(first, first + step) for first in range(0, count, step))
