"""What each kernel saves, counted without a GPU: ``python benchmarks/counts.py``.

For every op, at the full model's 720x1280 in bf16: operators that eager PyTorch runs and bytes
that they read and write (on the meta device, views left out), beside the launches of our launcher
(counted as ``tests/test_cubins.py`` does) and the bytes of its operands and results, each once.
With ``--window``: launches, bytes and operations of a whole window, by the plain networks and by
the engine; see :mod:`psssr_fast.runtime.tally`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before the first import of triton
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from compile_only import compiling_for
from torch import Tensor
from torch.utils._pytree import tree_leaves

from psssr_fast.config import Sampling, settings_for
from psssr_fast.engine import fuse
from psssr_fast.forecast import empty_networks
from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton
from psssr_fast.kernels.feature_project import feature_project_triton
from psssr_fast.kernels.flow_step import flow_step_triton
from psssr_fast.kernels.frequency_update import frequency_update_triton
from psssr_fast.kernels.gated_add import gated_add_triton
from psssr_fast.kernels.norm_modulate import norm_modulate_triton
from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton
from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton
from psssr_fast.kernels.upsample_conv2d import upsample_conv2d_triton
from psssr_fast.models.sizes import WAN_1_3B
from psssr_fast.ops.causal_conv3d import causal_conv3d_ref
from psssr_fast.ops.feature_project import cached_projection
from psssr_fast.ops.flow_step import flow_step_ref
from psssr_fast.ops.frequency_update import frequency_update_ref, separable_low_pass
from psssr_fast.ops.gated_add import gated_add_ref
from psssr_fast.ops.norm_modulate import norm_modulate_ref
from psssr_fast.ops.qk_norm_rope import qk_norm_rope_ref
from psssr_fast.ops.rms_norm_silu import rms_norm_silu_ref
from psssr_fast.ops.upsample_conv2d import upsample_conv2d_ref
from psssr_fast.pipeline import Networks, restore_window
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.tally import CountedGraphs, Tally, stored_bytes, tally

TOKENS, DIM = 28_800, 1536  # of 29 frames


@dataclass(frozen=True)
class Entry:
    """An op at one shape: how eager computes it, how we do, and operands on the meta device."""

    name: str
    eager: Callable[..., Any]
    ours: Callable[..., Any]
    operands: tuple[Any, ...]


def bf16(*shape: int) -> Tensor:
    """An operand that takes no memory."""
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def last(*shape: int) -> Tensor:
    """The same, channels last."""
    return bf16(*shape).contiguous(memory_format=torch.channels_last_3d)


def transformer_entries() -> list[Entry]:
    """Ops of a block."""
    x, vector = bf16(1, TOKENS, DIM), bf16(1, DIM)
    weight = bf16(DIM)
    table = torch.empty(TOKENS, 64, device="meta")
    cached = cached_projection(x, bf16(DIM, DIM), weight)
    return [
        Entry("norm_modulate", norm_modulate_ref, norm_modulate_triton, (x, vector, vector)),
        Entry(
            "qk_norm_rope",
            qk_norm_rope_ref,
            qk_norm_rope_triton,
            (x, bf16(1, TOKENS, DIM), weight, weight, table, table, 12),
        ),
        Entry("gated_add", gated_add_ref, gated_add_triton, (x, bf16(1, TOKENS, DIM), vector)),
        Entry(
            "feature_project",
            _joined_projection,
            feature_project_triton,
            (x, bf16(DIM, DIM), cached),
        ),
        Entry(
            "flow_step",
            flow_step_ref,
            flow_step_triton,
            (bf16(1, 16, 8, 90, 160),) * 2 + (0.7, 0.6),
        ),
    ]


def _joined_projection(h: Tensor, weight: Tensor, cached: Tensor) -> Tensor:
    """As the plain transformer does: concatenate feature and state, then one linear layer."""
    both = torch.cat([cached, h], dim=-1)
    return torch.nn.functional.linear(both, bf16(DIM, 2 * DIM), bf16(DIM))


def vae_entries() -> list[Entry]:
    """Ops at the highest resolution, a chunk of four frames."""
    x = last(1, 96, 4, 720, 1280)
    ring = last(1, 96, 6, 720, 1280)
    weight, bias = bf16(96, 96, 3, 3, 3), bf16(96)
    small, square = last(1, 192, 4, 360, 640), bf16(96, 192, 3, 3)
    phases = bf16(4, 96, 192, 2, 2)
    return [
        Entry("rms_norm_silu", rms_norm_silu_ref, rms_norm_silu_triton, (x, bf16(96), True)),
        Entry(
            "causal_conv3d",
            causal_conv3d_ref,
            causal_conv3d_triton,
            (ring, weight, bias, last(1, 96, 4, 720, 1280), 2, 4, 2),
        ),
        Entry(
            "upsample_conv2d",
            upsample_conv2d_ref,
            lambda x, weight, bias: upsample_conv2d_triton(x, phases, bias),
            (small, square, bias),
        ),
    ]


def frequency_entry() -> Entry:
    """The whole update of 29 frames."""
    settings = settings_for("released").frequency_update
    taps = separable_low_pass(settings.cutoff, settings.order)

    def fused(consistent: Tensor, sharp: Tensor) -> Tensor:
        return frequency_update_triton(
            consistent, sharp, *taps, strength=1.0, literal=True, border=0, eps=1e-8, detail=False
        )[0]

    def eager(consistent: Tensor, sharp: Tensor) -> Tensor:
        return frequency_update_ref(consistent, sharp, settings)

    return Entry("frequency_update", eager, fused, (bf16(29, 3, 720, 1280),) * 2)


def row(entry: Entry) -> str:
    """One line of the table."""
    with tally() as counted:
        entry.eager(*entry.operands)
    eager = counted.total
    with compiling_for(90) as cubins:
        result = entry.ours(*entry.operands)
    tensors = [x for x in tree_leaves((entry.operands, result)) if isinstance(x, Tensor)]
    least = sum(stored_bytes(x) for x in tensors)
    return (
        f"| {entry.name} | {eager.launches} | {eager.bytes / 1e9:.2f} | {len(cubins)} | "
        f"{least / 1e9:.2f} | {eager.bytes / least:.1f} |"
    )


def windows() -> Iterator[tuple[str, Tally]]:
    """Ways to restore a window of 29 frames 720x1280 by the full model, and what each takes."""
    device, dtype, sampling = torch.device("cuda"), torch.bfloat16, Sampling()
    networks = empty_networks(WAN_1_3B, dtype, sampling, "plain", device)
    picture = torch.empty(29, 3, 720, 1280, device="meta")

    def counted(networks: Networks, profile: str, into: Tally, together: bool = False) -> Tally:
        with tally(into):
            restore_window(networks, picture, settings_for(profile), Execution(together))
        return into

    yield "plain, paper", counted(networks, "paper", Tally())
    yield "plain", counted(networks, "released", Tally())
    fused = fuse(networks, sampling)
    yield "engine, launch by launch", counted(fused, "released", Tally())
    yield "the same, both decodes at once", counted(fused, "released", Tally(), together=True)
    into = Tally()
    yield "engine, graphs", counted(fuse(networks, sampling, CountedGraphs(into)), "released", into)


def window_rows(name: str, counted: Tally) -> Iterator[str]:
    """Lines of the table: the whole, and every stage."""
    for stage, count in {"all": counted.total, **counted.stages}.items():
        yield (
            f"| {name} | {stage} | {count.launches:,} | {count.replays} | "
            f"{count.bytes / 1e9:,.1f} | {count.flops / 1e12:,.2f} |"
        )


def print_ops() -> None:
    """The table of ops."""
    print("| op | eager operators | eager GB | launches | GB of operands | eager bytes / ours |")
    print("|---|---|---|---|---|---|")
    for entry in [*transformer_entries(), *vae_entries(), frequency_entry()]:
        print(row(entry), flush=True)


def print_windows() -> None:
    """The table of windows, and the ratios that matter."""
    print("| window | stage | launches | replays of graphs | GB | TFLOP |")
    print("|---|---|---|---|---|---|")
    found = dict(windows())
    for name, counted in found.items():
        print("\n".join(window_rows(name, counted)), flush=True)
    plain, engine = found["plain"], found["engine, launch by launch"]
    vae = [one.stages["encode"] + one.stages["decode"] for one in (engine, plain)]
    print(f"engine / plain: FLOP {engine.total.flops / plain.total.flops:.3f}, ", end="")
    print(f"bytes {engine.total.bytes / plain.total.bytes:.3f}, ", end="")
    print(f"bytes of the VAE {vae[0].bytes / vae[1].bytes:.3f}")


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--window", action="store_true", help="whole windows instead of ops")
    print_windows() if parser.parse_args().window else print_ops()


if __name__ == "__main__":
    main()
