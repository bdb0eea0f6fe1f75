"""What each kernel saves, counted without a GPU: ``python benchmarks/counts.py``.

For every op, at the full model's 720x1280 in bf16: operators that eager PyTorch runs and bytes
that they read and write (on the meta device, views left out), beside the launches of our launcher
(counted as ``tests/test_cubins.py`` does) and the bytes of its operands and results, each once.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before the first import of triton
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from compile_only import compiling_for
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psssr_fast.config import settings_for
from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton
from psssr_fast.kernels.feature_project import feature_project_triton
from psssr_fast.kernels.flow_step import flow_step_triton
from psssr_fast.kernels.frequency_update import frequency_update_triton
from psssr_fast.kernels.gated_add import gated_add_triton
from psssr_fast.kernels.norm_modulate import norm_modulate_triton
from psssr_fast.kernels.qk_norm_rope import qk_norm_rope_triton
from psssr_fast.kernels.rms_norm_silu import rms_norm_silu_triton
from psssr_fast.kernels.upsample_conv2d import upsample_conv2d_triton
from psssr_fast.ops.causal_conv3d import causal_conv3d_ref
from psssr_fast.ops.feature_project import cached_projection
from psssr_fast.ops.flow_step import flow_step_ref
from psssr_fast.ops.frequency_update import frequency_update_ref, separable_low_pass
from psssr_fast.ops.gated_add import gated_add_ref
from psssr_fast.ops.norm_modulate import norm_modulate_ref
from psssr_fast.ops.qk_norm_rope import qk_norm_rope_ref
from psssr_fast.ops.rms_norm_silu import rms_norm_silu_ref
from psssr_fast.ops.upsample_conv2d import upsample_conv2d_ref

TOKENS, DIM = 28_800, 1536  # of 29 frames


class Counter(TorchDispatchMode):
    """Operators that do work, and the bytes of their operands and results."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func._schema.name not in ("aten::detach", "aten::empty"):
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.operators += 1
            self.bytes += sum(_nbytes(x) for x in tensors)
        return out


def _nbytes(x: Tensor) -> int:
    """Of the distinct elements: an expanded axis is stored once."""
    sizes = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride]
    count = 1
    for size in sizes:
        count *= size
    return count * x.element_size()


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
    with Counter() as counter:
        entry.eager(*entry.operands)
    with compiling_for(90) as cubins:
        result = entry.ours(*entry.operands)
    tensors = [x for x in tree_leaves((entry.operands, result)) if isinstance(x, Tensor)]
    least = sum(_nbytes(x) for x in tensors)
    return (
        f"| {entry.name} | {counter.operators} | {counter.bytes / 1e9:.2f} | {len(cubins)} | "
        f"{least / 1e9:.2f} | {counter.bytes / least:.1f} |"
    )


def main() -> None:
    """Print the table."""
    print("| op | eager operators | eager GB | launches | GB of operands | eager bytes / ours |")
    print("|---|---|---|---|---|---|")
    for entry in [*transformer_entries(), *vae_entries(), frequency_entry()]:
        print(row(entry), flush=True)


if __name__ == "__main__":
    main()
