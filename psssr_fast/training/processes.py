"""One process or several: who this is, and gradients that all agree on."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from psssr_fast.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        device: of this one.
        rank, world: which of how many this is; 0 writes files.
        accelerator: ``accelerate.Accelerator`` if there are several.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    accelerator: Any = None

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, all in one message."""
        if self.accelerator is None:
            return
        moved = list(parameters)
        for parameter in moved:  # a network that this process did not use counts as zero
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        flat = torch.cat([gradient.float().flatten() for gradient in gradients])
        mean = self.accelerator.reduce(flat, reduction="mean")
        pieces = mean.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """Of a tensor, over the processes."""
        if self.accelerator is None:
            return values
        result: Tensor = self.accelerator.reduce(values, reduction="mean")
        return result

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def open_processes(device: torch.device) -> Processes:
    """The processes that ``accelerate launch`` (or ``torchrun``) started, or this one alone.

    Raises:
        UsageError: several were started, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device)
    try:
        from accelerate import Accelerator
    except ImportError:
        raise UsageError(
            "training in several processes needs accelerate: pip install 'psssr_fast[train]'"
        ) from None
    accelerator = Accelerator(cpu=device.type == "cpu")
    return Processes(
        accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator
    )
