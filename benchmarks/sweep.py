"""Every way to run each convolution of the VAE: ``python benchmarks/sweep.py -o sweep.json``.

For every shape of ``vae_shapes.py``: cuDNN on both layouts, with and without its own search, three
2-D convolutions in place of one 3-D, and our kernel. The last rows add up what one chunk of an
encode and of a decode would take with the best library call everywhere, and with ours. ``--small``
divides height and width by 40 and is for any machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from vae_shapes import VAE_SHAPES, ConvShape

from psssr_fast.ops.causal_conv3d import causal_conv3d, pack_conv_weight
from psssr_fast.ops.upsample_conv2d import pack_upsample_weight, upsample_conv2d

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
OURS = "ours"
Rows = dict[str, dict[str, float]]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median of 10 runs after 3, by the device's own clock."""
    if device.type != "cuda":
        call()
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    for _ in range(3):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(10)]
    for begin, end in pairs:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def as_pictures(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One 3-D convolution as 2-D ones, a tap in time each; ``x`` is padded in time."""
    frames = x.shape[2] - weight.shape[2] + 1
    total = None
    for tap in range(weight.shape[2]):
        part = x[:, :, tap : tap + frames].transpose(1, 2).flatten(0, 1)
        out = F.conv2d(part, weight[:, :, tap], None if tap else bias, padding="same")
        total = out if total is None else total.add_(out)
    assert total is not None
    return total


def ways(shape: ConvShape, device: torch.device) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Name and call of every way to compute a shape."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kt, kh, kw = shape.kernel
    size = 1, shape.cin, shape.frames + kt - 1, shape.height, shape.width
    x = torch.randn(size, device=device, dtype=dtype)
    weight = torch.randn(shape.cout, shape.cin, kt, kh, kw, device=device, dtype=dtype) / 50
    bias = torch.randn(shape.cout, device=device, dtype=dtype)
    for name, layout in LAYOUTS.items():
        a = x.contiguous(memory_format=layout)
        w = weight.contiguous(memory_format=layout)
        if shape.upsample:
            a2, w2 = a.transpose(1, 2).flatten(0, 1), w[:, :, 0]
            yield (
                name,
                lambda a2=a2, w2=w2: F.conv2d(
                    F.interpolate(a2, scale_factor=2.0, mode="nearest-exact"), w2, bias, padding=1
                ),
            )
        else:
            yield name, lambda a=a, w=w: F.conv3d(a, w, bias, padding=(0, kh // 2, kw // 2))
    last = x.contiguous(memory_format=torch.channels_last_3d)
    if kt == 3 and kh == 3:
        yield "2-D convolutions", lambda: as_pictures(last, weight, bias)
    if shape.upsample:
        square = weight[:, :, 0]
        phases = pack_upsample_weight(square)
        yield OURS, lambda: upsample_conv2d(last, square, bias, phases)
    else:
        packed = pack_conv_weight(weight)
        yield (
            OURS,
            lambda: causal_conv3d(last, packed, bias, None, kt - 1, shape.frames, kt - 1),
        )
        yield from other_tiles(shape, last, packed, bias)


def other_tiles(
    shape: ConvShape, x: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Our kernel with each tile that was considered and not chosen; for a GPU only."""
    if x.device.type != "cuda":
        return
    from psssr_fast.kernels._conv_tiles import Problem, candidate_tiles
    from psssr_fast.kernels._launch import architecture
    from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton

    past = shape.kernel[0] - 1
    problem = Problem.of(x.permute(0, 2, 3, 4, 1), shape.kernel, shape.cout, 1, architecture(x))
    for tile in candidate_tiles(problem)[1:]:
        yield (
            f"{OURS} with {tile}",
            lambda tile=tile: causal_conv3d_triton(
                x, weight, bias, None, past, shape.frames, past, tile
            ),
        )


def sweep(
    rows: Rows, shapes: tuple[ConvShape, ...], device: torch.device, gemm: float, output: Path
) -> None:
    """Time every way of every shape, cuDNN's with and without its search.

    What is known is written after every shape, and a way that fails costs only itself.
    """
    for shape in shapes:
        for name, call in ways(shape, device):
            searches = (False,) if name.startswith(OURS) or device.type != "cuda" else (False, True)
            for search in searches:
                torch.backends.cudnn.benchmark = search
                try:
                    spent = seconds(call, device)
                except Exception as error:
                    print(f"{shape.name} | {name}: {error!r}", flush=True)
                    continue
                rate = shape.flops / spent / 1e12
                label = f"{shape.name} | {name}{', search' if search else ''}"
                rows[label] = {
                    "ms": round(1e3 * spent, 4),
                    "TFLOP/s": round(rate, 3),
                    "of GEMM": round(rate / gemm, 3),
                }
                print(label, rows[label], flush=True)
        output.write_text(json.dumps(rows, indent=1))


def totals(rows: Rows, shapes: tuple[ConvShape, ...]) -> Rows:
    """Milliseconds of the convolutions of one chunk."""
    sums: Rows = {}
    for half in ("encode", "decode"):
        best = {"library": 0.0, OURS: 0.0}
        for shape in shapes:
            times = {
                k.split(" | ")[1]: v["ms"]
                for k, v in rows.items()
                if k.startswith(shape.name + " | ")
            }
            count = getattr(shape, half)
            best["library"] += count * min(
                ms for way, ms in times.items() if not way.startswith(OURS)
            )
            best[OURS] += count * times.get(OURS, float("nan"))
        sums[f"all of one chunk, {half}"] = {f"{way} ms": round(ms, 3) for way, ms in best.items()}
    return sums


def gemm_rate(device: torch.device) -> float:
    """TFLOP/s of a large matrix product on this device, now."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: a @ a, device) / 1e12


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("sweep.json"))
    parser.add_argument("--small", action="store_true", help="tiny pictures")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = VAE_SHAPES
    if arguments.small:
        shapes = tuple(replace(s, height=s.height // 40, width=s.width // 40) for s in shapes)
    gemm = gemm_rate(device)
    rows: Rows = {"8192^3 GEMM": {"TFLOP/s": round(gemm, 3)}}
    with torch.no_grad():
        sweep(rows, shapes, device, gemm, arguments.output)
    rows |= totals(rows, shapes)
    arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
