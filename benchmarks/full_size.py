"""Plain networks and engine at full size, stage by stage: 29 frames 720x1280, as in Table 4.

Random weights, bf16. ``python benchmarks/full_size.py -o stages.json``; ``--small`` runs it at a
size for any machine. Prints a row for each stage.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from psssr_fast.config import Settings, settings_for
from psssr_fast.engine import fuse
from psssr_fast.models.codec import WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import WAN_1_3B, DitSize, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.ops.frequency_update import update_frequencies
from psssr_fast.pipeline import Networks, restore_window
from psssr_fast.sampling import base_step, draft_steps, make_schedule

SMALL_DIT = DitSize(
    dim=64, ffn_dim=128, heads=2, layers=6, kept_blocks=(2, 5), text_dim=32, freq_dim=32
)
SMALL_VAE = VaeSize(dim=8)


@dataclass
class Timings:
    """Seconds (median after one warm-up) and peak memory of each stage."""

    device: torch.device
    rounds: int
    output: Path  # rewritten after every stage
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def measure(self, name: str, run: Callable[[], Any]) -> Any:
        """Run a stage, record it under ``name``, return its result."""
        result = run()
        seconds = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(self.rounds):
            self._wait()
            begin = time.perf_counter()
            result = run()
            self._wait()
            seconds.append(time.perf_counter() - begin)
        row = {"seconds": statistics.median(seconds)}
        if self.device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.rows[name] = row
        self.output.write_text(json.dumps(self.rows, indent=1))
        print(name, row, flush=True)
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def random_networks(dit: DitSize, vae: VaeSize, device: torch.device) -> Networks:
    """Full-size networks need no checkpoint to be timed."""
    torch.set_default_dtype(torch.bfloat16)
    with device:
        base, draft, codec = Dit(dit), Dit(dit, draft=True), WanVae(vae)
        context = torch.randn(1, 512, dit.text_dim)
    torch.set_default_dtype(torch.float32)
    for network in (base, draft, codec):
        network.eval().requires_grad_(False)
    return Networks(base, draft, WanCodec(codec), context)


def time_stages(
    name: str, networks: Networks, picture: torch.Tensor, settings: Settings, timings: Timings
) -> None:
    """Every stage of a window by some networks, then the whole of it."""
    schedule = make_schedule(settings.sampling)
    batched = picture.transpose(0, 1)[None].to(networks.dtype)
    with torch.no_grad():
        latents, condition = timings.measure(
            f"{name}: encode", lambda: networks.codec.encode(batched)
        )
        first, features = timings.measure(
            f"{name}: base step",
            lambda: base_step(networks.base, latents, networks.context, schedule),
        )
        timings.measure(
            f"{name}: three draft steps",
            lambda: draft_steps(
                networks.draft, first.next_latents, latents, features, networks.context,
                schedule, settings.sampling,
            ),
        )  # fmt: skip
        timings.measure(
            f"{name}: one decode", lambda: networks.codec.decode(first.estimate, condition)
        )
        unit = (picture + 1) / 2
        timings.measure(
            f"{name}: frequency update",
            lambda: update_frequencies(unit, unit.flip(-1), settings.frequency_update),
        )
        timings.measure(
            f"{name}: window, end to end", lambda: restore_window(networks, picture, settings)
        )


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("stages.json"))
    parser.add_argument("--small", action="store_true", help="reduced networks and clip")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dit, vae = (SMALL_DIT, SMALL_VAE) if arguments.small else (WAN_1_3B.dit, WAN_1_3B.codec)
    assert isinstance(vae, VaeSize)
    shape = (5, 3, 32, 48) if arguments.small else (29, 3, 720, 1280)
    timings = Timings(device, rounds=2, output=arguments.output)
    picture = torch.rand(shape, device=device) * 2 - 1
    settings = settings_for("released")
    plain = random_networks(dit, vae, device)
    time_stages("plain", plain, picture, settings, timings)
    engine = fuse(plain, settings.sampling)
    del plain  # and with it the weights that the engine has merged
    time_stages("engine", engine, picture, settings, timings)
    for name, row in timings.rows.items():
        print(f"| {name} | {row['seconds']:.4g} s | {row.get('peak_gib', 0):.1f} GiB |")


if __name__ == "__main__":
    main()
