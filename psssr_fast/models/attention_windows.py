"""Attention that is local in space and time: tokens see those of their own window."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a grid of tokens is cut into windows.

    ``split`` pads the grid to whole windows; ``mask`` hides the padding. A shifted layout starts
    half a window earlier on each axis that has more than one window, so that the borders of one
    layout lie inside the windows of the other.

    Attributes:
        grid: tokens in time, height and width.
        window: tokens of a window.
        padding: tokens added before and after each axis: ``(before, after)`` for t, h, w.
        device: of the tokens.
    """

    grid: tuple[int, int, int]
    window: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]
    device: torch.device

    @classmethod
    def over(
        cls,
        grid: tuple[int, int, int],
        window: tuple[int, int, int],
        shifted: bool,
        device: torch.device,
    ) -> "Layout":
        """Cut ``grid`` into windows of at most ``window`` tokens."""
        fitted = tuple(min(size, limit) for size, limit in zip(grid, window, strict=True))
        padding = []
        for size, length in zip(grid, fitted, strict=True):
            before = length // 2 if shifted and size > length else 0
            padding.append((before, -(size + before) % length))
        return cls(grid, fitted, tuple(padding), device)  # type: ignore[arg-type]

    @cached_property
    def mask(self) -> Tensor | None:
        """Which keys are real, bool ``[windows, 1, 1, tokens of a window]`` for one clip; ``None``
        if all are."""
        if not any(sum(pair) for pair in self.padding):
            return None
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        real = torch.ones(1, tokens, 1, 1, dtype=torch.bool, device=self.device)
        return self.split(real)[:, :, 0, 0][:, None, None, :]

    @property
    def shift(self) -> tuple[int, int, int]:
        """How many tokens before the grid the first window begins, on each axis."""
        (t, _), (h, _), (w, _) = self.padding
        return t, h, w

    def split(self, x: Tensor) -> Tensor:
        """From ``[batch, tokens, heads, dim]`` to ``[windows, tokens of a window, heads, dim]``,
        all windows of the first clip first."""
        (t0, t1), (h0, h1), (w0, w1) = self.padding
        x = x.unflatten(1, self.grid)
        x = F.pad(x, (0, 0, 0, 0, w0, w1, h0, h1, t0, t1))
        t, h, w = self.window
        x = x.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t))
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7, 8)  # b T H W t h w heads dim
        return x.flatten(0, 3).flatten(1, 3)

    def mask_for(self, batch: int) -> Tensor | None:
        """The mask of ``batch`` clips."""
        return None if self.mask is None else self.mask.repeat(batch, 1, 1, 1)

    def join(self, x: Tensor, batch: int) -> Tensor:
        """The inverse of :meth:`split`, without the padding."""
        (t0, t1), (h0, h1), (w0, w1) = self.padding
        frames, height, width = self.grid
        t, h, w = self.window
        counts = ((frames + t0 + t1) // t, (height + h0 + h1) // h, (width + w0 + w1) // w)
        x = x.unflatten(1, self.window).unflatten(0, (batch, *counts))
        x = x.permute(0, 1, 4, 2, 5, 3, 6, 7, 8)
        x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        x = x[:, t0 : t0 + frames, h0 : h0 + height, w0 : w0 + width]
        return x.flatten(1, 3)
