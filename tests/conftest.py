"""Run every Triton kernel for real on a GPU, and in Triton's interpreter where there is none."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Threads of torch that wait for each other must not spin meanwhile: on a busy machine that takes
# four times the processor time. It is read when torch is loaded, here and in child processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if TYPE_CHECKING:
    from job_fixtures import Forks

# `python -m pytest` puts the repository root there, where transformers, looking for a package
# called kernels, would find ours. psssr_fast is imported from where it is installed.
ROOT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

os.environ["PSSSR_CHOICES"] = "off"  # what a warm-up of this machine found is no business of tests
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must precede the first import of triton


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def forks() -> "Iterator[Forks]":
    """One process that has imported everything, whose forks are ``psssr upscale``."""
    from job_fixtures import Forks

    with Forks() as running:
        yield running


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    """Seed the test, and make ``torch.empty`` return NaN so that an unwritten output shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
