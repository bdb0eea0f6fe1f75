"""A window of ``nano`` by the plain networks in fp32 and by the engine in this machine's dtype."""

import pytest
import torch

from psssr_fast.config import settings_for
from psssr_fast.engine import fuse
from psssr_fast.loading import load_networks
from psssr_fast.pipeline import restore_window


@pytest.mark.benchmark(group="a window of nano, 8 frames 1280x720")
@pytest.mark.parametrize("engine", ["plain", "fused"])
def bench_engine(measure, device, engine):
    settings = settings_for("released")
    dtype = torch.float32 if engine == "plain" else None
    networks = load_networks("nano", device, dtype).networks
    if engine == "fused":
        networks = fuse(networks, settings.sampling)
    picture = torch.rand(8, 3, 720, 1280, device=device) * 2 - 1
    measure(restore_window, networks, picture, settings)
