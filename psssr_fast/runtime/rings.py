"""Where the inputs of causal convolutions live, with the frames before them still in place.

A *ring* is a tensor ``[B, C, R, H, W]`` in which frame ``n`` of a clip is in some slot modulo
``R``: what a convolution looks back at is simply still there from the chunk before, and nothing is
padded, concatenated or copied.

Between two chunks a convolution needs only its history, not the chunk. So convolutions that follow
each other, see frames of one shape and look back equally far share a ring. Their histories lie in
it next to each other, that of the first on top, and a gap as long as a chunk above it. The first
writes its chunk into the gap, above its own history; the lower end of which, and what was its
chunk's but for the new history, is now the gap below it, directly above the history of the second,
which therefore does the same; and so on. When all have moved up by a chunk the gap is below the
last, and as the ring is one, above the first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from psssr_fast.models.vae import CausalCache


@dataclass(frozen=True)
class Place:
    """The place of a convolution among those that share a ring.

    Attributes:
        ring: number of the ring.
        index: of the convolution, in the order in which they run.
        count: of the convolutions that share the ring.
        frames: in a chunk, but for the first chunk, which may have fewer.
    """

    ring: int
    index: int
    count: int
    frames: int


class Pass:
    """What one pass over one clip remembers between chunks.

    Attributes:
        cache: of the few layers that are run as the plain VAE runs them; knows where the clip is.
    """

    def __init__(self, keep: bool, at_once: int | None = None) -> None:
        """Begin a clip.

        Args:
            keep: ``False`` if it comes as a single chunk.
            at_once: most frames that a layer is given, or 2 where that is less.
        """
        self.cache = CausalCache(keep)
        self._keep, self._at_once = keep, at_once
        self._own: dict[object, tuple[Tensor, int]] = {}
        self._shared: dict[int, tuple[Tensor, list[int]]] = {}

    def ring(
        self, layer: object, like: Tensor, history: int, place: Place | None = None
    ) -> tuple[Tensor, int, int]:
        """Room for a chunk of the input of a convolution, behind its history.

        Args:
            layer: whose input it is.
            like: shape and dtype of the chunk, ``[B, C, T, H, W]``.
            history: frames that the convolution looks back.
            place: in a shared ring; ``None`` for one of its own.

        Returns:
            The ring, the slot of the chunk's first frame, and how many frames before it are there.
        """
        frames = like.shape[2]
        if not self._keep:
            return _empty(like, frames), 0, 0
        if place is not None:
            return self._in_shared(place, like, history)
        ring, seen = self._own.get(layer, (None, 0))
        if ring is None or ring.shape[2] < frames + history:
            ring = _grown(ring, _empty(like, frames + history), seen, history)
        self._own[layer] = ring, seen + frames
        return ring, seen % ring.shape[2], min(seen, history)

    def _in_shared(self, place: Place, like: Tensor, history: int) -> tuple[Tensor, int, int]:
        frames = like.shape[2]
        if place.ring not in self._shared:
            gap = place.frames
            if self._at_once is not None:
                gap = min(gap, max(2, self._at_once))
            ring = _empty(like, history * place.count + gap)
            self._shared[place.ring] = ring, [0] * place.count
        ring, seen = self._shared[place.ring]
        before = seen[place.index]
        assert history * place.count + frames <= ring.shape[2], "no room for the chunk"
        assert all(other == before + frames for other in seen[: place.index]), "out of order"
        assert all(other == before for other in seen[place.index :]), "out of order"
        seen[place.index] += frames
        first = history * (1 - place.index) + before
        return ring, first % ring.shape[2], min(before, history)


def _empty(like: Tensor, frames: int) -> Tensor:
    batch, channels, _, height, width = like.shape
    shape = batch, channels, frames, height, width
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d
    )


def _grown(old: Tensor | None, new: Tensor, seen: int, history: int) -> Tensor:
    """Move the last frames of a ring to their slots in a larger one."""
    if old is not None:
        for frame in range(max(0, seen - history), seen):
            new[:, :, frame % new.shape[2]] = old[:, :, frame % old.shape[2]]
    return new


def put(x: Tensor, ring: Tensor, first: int) -> None:
    """Write the frames of ``x`` into a ring from slot ``first`` on."""
    whole = min(x.shape[2], ring.shape[2] - first)
    ring[:, :, first : first + whole] = x[:, :, :whole]
    ring[:, :, : x.shape[2] - whole] = x[:, :, whole:]
