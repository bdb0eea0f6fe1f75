"""One batch in one step of training, and what an objective makes of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from psssr_fast.training.data import Batch
from psssr_fast.training.draws import Draw, derived_seed


@dataclass
class Result:
    """What an objective makes of a batch.

    Attributes:
        total: what is minimised.
        parts: each loss before its weight, for the log.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass
class Scene:
    """One batch in one step.

    Attributes:
        batch: the clips.
        seed: of the noise of this step; every sample has its own, so that it does not matter which
            process has it.
        made: what earlier objectives leave for later ones.
    """

    batch: Batch
    seed: int
    made: dict[str, Tensor] = field(default_factory=dict)

    def draws(self, salt: int) -> list[Draw]:
        """A stream for each sample; another ``salt``, other streams."""
        return [Draw(derived_seed(self.seed, salt, index)) for index in self.batch.indices]

    def draw(self, salt: int) -> Draw:
        """A stream of the whole step, the same in every process."""
        return Draw(derived_seed(self.seed, salt))

    def noise(self, like: Tensor, salt: int) -> Tensor:
        """Standard normal, shaped like ``like``."""
        return torch.stack([draw.normal(like.shape[1:]) for draw in self.draws(salt)]).to(like)

    def timesteps(self, low_high: tuple[int, int], salt: int) -> Tensor:
        """One for each sample, fp32."""
        values = [float(draw.integer(*low_high)) for draw in self.draws(salt)]
        return torch.tensor(values, device=self.batch.high.device)
