"""Everything worth running on a GPU, in one call: ``python benchmarks/gpu_suite.py -o gpu.json``.

1. the tests, on that device; 2. the benchmarks; 3. the plain pipeline at full size (random
weights, bf16, 29 frames 720x1280, the paper's Table 4 workload), stage by stage. Writes one JSON
and prints the rows for RESULTS.md. ``--small`` runs the third part at a size for any machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from psssr_fast.config import Settings, settings_for
from psssr_fast.models.codec import WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import WAN_1_3B, DitSize, VaeSize
from psssr_fast.models.vae import WanVae
from psssr_fast.ops.frequency_update import update_frequencies
from psssr_fast.pipeline import Networks, restore_window
from psssr_fast.sampling import base_step, draft_steps, make_schedule

ROOT = Path(__file__).parents[1]
SMALL_DIT = DitSize(
    dim=64, ffn_dim=128, heads=2, layers=6, kept_blocks=(2, 5), text_dim=32, freq_dim=32
)
SMALL_VAE = VaeSize(dim=8)


@dataclass
class Timings:
    """Seconds (median after one warm-up) and peak memory of each stage."""

    device: torch.device
    rounds: int
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
        print(name, row, flush=True)
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def pytest_run(*arguments: str) -> dict[str, object]:
    """Run pytest in its own process; how it ended and its last line."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(run.stdout[-3000:], run.stderr[-1000:], flush=True)
    last = run.stdout.strip().splitlines()[-1:] or [""]
    return {"exit": run.returncode, "summary": last[0], "seconds": time.monotonic() - begin}


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


def time_stages(networks: Networks, picture: torch.Tensor, timings: Timings) -> None:
    """The plain pipeline, stage by stage, then the whole window."""
    settings: Settings = settings_for("released")
    schedule = make_schedule(settings.sampling)
    batched = picture.transpose(0, 1)[None].to(networks.dtype)
    with torch.no_grad():
        latents, condition = timings.measure("encode", lambda: networks.codec.encode(batched))
        first, features = timings.measure(
            "base step", lambda: base_step(networks.base, latents, networks.context, schedule)
        )
        timings.measure(
            "three draft steps",
            lambda: draft_steps(
                networks.draft, first.next_latents, latents, features, networks.context,
                schedule, settings.sampling,
            ),
        )  # fmt: skip
        timings.measure("one decode", lambda: networks.codec.decode(first.estimate, condition))
        unit = (picture + 1) / 2
        timings.measure(
            "frequency update",
            lambda: update_frequencies(unit, unit.flip(-1), settings.frequency_update),
        )
        timings.measure("window, end to end", lambda: restore_window(networks, picture, settings))


def environment(device: torch.device) -> dict[str, str]:
    """What the numbers were measured on."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="third part only, reduced")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"environment": environment(device)}
    if not arguments.small:
        result["tests"] = pytest_run("tests")
        timing = str(arguments.output.with_suffix(".benchmarks.json").resolve())
        result["benchmarks"] = pytest_run(
            "benchmarks", "--benchmark-only", f"--benchmark-json={timing}"
        )
    dit, vae = (SMALL_DIT, SMALL_VAE) if arguments.small else (WAN_1_3B.dit, WAN_1_3B.codec)
    assert isinstance(vae, VaeSize)
    shape = (5, 3, 32, 48) if arguments.small else (29, 3, 720, 1280)
    timings = Timings(device, rounds=3)
    picture = torch.rand(shape, device=device) * 2 - 1
    time_stages(random_networks(dit, vae, device), picture, timings)
    result["stages"] = timings.rows
    arguments.output.write_text(json.dumps(result, indent=1))
    for name, row in timings.rows.items():
        print(f"| {name} | {row['seconds']:.4g} s | {row.get('peak_gib', 0):.1f} GiB |")


if __name__ == "__main__":
    main()
