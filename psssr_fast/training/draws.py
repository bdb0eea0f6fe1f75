"""Random numbers that a seed decides, on every machine the same way."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SEED = 2**62


class Draw:
    """Numbers from one seeded stream, drawn on the CPU whatever device they end up on."""

    def __init__(self, seed: int | torch.Generator) -> None:
        """Start a stream at a seed (0 or more), or continue a generator's."""
        if isinstance(seed, torch.Generator):
            self.generator = seed
        else:
            self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """A number of [low, high)."""
        # fp64: in fp32 the product may round up to ``high``
        share = torch.rand((), dtype=torch.float64, generator=self.generator)
        return low + (high - low) * float(share)

    def integer(self, low: int, high: int) -> int:
        """A whole number of low, ..., high; both ends are drawn."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self.uniform(0, 1) < probability

    def pick(self, weights: Sequence[float]) -> int:
        """An index, in proportion to its weight."""
        spot, total = self.uniform(0, sum(weights)), 0.0
        for index, weight in enumerate(weights):
            total += weight
            if spot < total:
                return index
        return len(weights) - 1  # the sum may round to a little less than the largest spot

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, fp32 on the CPU."""
        return torch.randn(tuple(shape), generator=self.generator)

    def seed(self) -> int:
        """The seed of a stream of its own."""
        return self.integer(0, MAX_SEED)


def derived_seed(*parts: int) -> int:
    """One seed out of several whole numbers: other parts, another and unrelated seed.

    An integer hash (splitmix64's finaliser) over the parts, so that neighbouring seeds and
    indices do not give neighbouring streams.
    """
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state % MAX_SEED
