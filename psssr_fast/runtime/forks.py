"""Processes: what was made before a fork, and is used after it."""

import os

import torch

from psssr_fast.errors import UsageError


class Maker:
    """The process that made something. Pickled, it becomes the process that unpickles it."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type["Maker"], tuple[()]]:
        return Maker, ()

    def check(self, device: torch.device) -> None:
        """Raise UsageError if this process is a fork in which torch would hang or fail.

        A fork inherits neither CUDA nor the threads that torch's operators share.
        """
        threads = torch.get_num_threads()
        if os.getpid() == self._process or (device.type == "cpu" and threads == 1):
            return
        what = "CUDA" if device.type == "cuda" else f"torch's {threads} threads"
        remedy = "" if device.type == "cuda" else ", or call torch.set_num_threads(1) here"
        raise UsageError(
            f"this Upscaler was made in process {self._process}, of which this one is a fork, and "
            f"{what} cannot be used after a fork; start processes with multiprocessing's 'spawn', "
            f"or make the Upscaler here{remedy}"
        )
