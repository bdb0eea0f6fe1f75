"""Which tile of pixels and channels a program of the implicit GEMM computes, by problem.

What decides on Hopper, by arithmetic. In a step over ``depth`` input channels of one tap, a program
of P pixels and N channels reads (P + N) * depth values through L2 for 2 * P * N * depth FLOP. If
L2 delivers 5.5 TB/s, that allows 352 TFLOP/s for 128 x 128, 603 for 256 x 192 and, as the layer has
no more channels, 384 for 256 x 96. There ``lines`` help: a program of 4 lines of 128 pixels, which
takes the three taps of a column in one step, reads 6 lines and 3 blocks of weights for 12 products.
That allows 768.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

FRAME_GROUP = 8  # frames whose programs run together: each frame is input to three outputs


@dataclass(frozen=True)
class Problem:
    """What the choice depends on.

    Attributes:
        cin: input channels.
        cout: output channels.
        kernel: taps in time, height and width.
        height: of the input, in pixels.
        width: of the input, in pixels.
        scale: 2 for the phases of an upsampling convolution.
        dtype: of everything.
        arch: 80, 90, 100.
        aligned: whether the input starts at a multiple of 16 bytes.
    """

    cin: int
    cout: int
    kernel: tuple[int, int, int]
    height: int
    width: int
    scale: int
    dtype: torch.dtype
    arch: int
    aligned: bool = True

    @classmethod
    def of(
        cls, x: Tensor, kernel: tuple[int, int, int], cout: int, scale: int, arch: int
    ) -> "Problem":
        """The problem of convolving ``x``, ``[B, R, H, W, C]``."""
        height, width, cin = x.shape[2:]
        aligned = x.data_ptr() % 16 == 0
        return cls(cin, cout, kernel, height, width, scale, x.dtype, arch, aligned)


@dataclass(frozen=True)
class Tile:
    """What one program computes, and how.

    Attributes:
        rows: rows of pixels of a tile.
        cols: columns of pixels of a tile.
        lines: tiles of a program, one below the other; more than one only with ``rows`` 1.
        channels: output channels, as the sum of two powers of two, the second of which may be 0.
        depth: input channels of a step.
        warps: of 32 threads.
        stages: steps whose operands are in shared memory.
        tma: operands are fetched by descriptor.
        tma_out: results are written by descriptor.
        channels_first: channels are the rows of the product and pixels its columns.
        column: all taps of a column are taken in one step, which reads each line once for them.
        flat: taps and input channels are walked as one: for few input channels.
    """

    rows: int
    cols: int
    lines: int
    channels: tuple[int, int]
    depth: int
    warps: int
    stages: int
    tma: bool = False
    tma_out: bool = False
    channels_first: bool = False
    column: bool = False
    flat: bool = False


Chooser = Callable[[Problem, list[Tile]], Tile | None]
_measured: Chooser | None = None  # who knows what was measured
_decided: dict[Problem, Tile | None] = {}


def decide_by(chooser: Chooser | None) -> None:
    """Have a choice made by measurement from now on.

    Args:
        chooser: is given a problem and its candidates and returns one of them, or ``None`` where a
            library's convolution is faster than all; without one the first candidate is taken.
    """
    global _measured
    _measured = chooser
    _decided.clear()


def _decide(problem: Problem) -> Tile | None:
    if problem not in _decided:
        tiles = candidate_tiles(problem)
        _decided[problem] = tiles[0] if _measured is None else _measured(problem, tiles)
    return _decided[problem]


def library_is_faster(problem: Problem) -> bool:
    """Whether a library's convolution is to be taken."""
    return _decide(problem) is None


def choose_tile(problem: Problem) -> Tile:
    """The tile for a problem: the one that was measured to be the fastest, if any was, or the first
    of :func:`candidate_tiles`."""
    return _decide(problem) or candidate_tiles(problem)[0]


def candidate_tiles(problem: Problem) -> list[Tile]:
    """The tile that arithmetic favours, then others worth timing on a GPU."""
    if problem.dtype == torch.float32:
        return [_fp32(problem)]
    copied = problem.arch >= 90 and problem.aligned and problem.cin % 8 == 0
    if not copied or (problem.cout > 8 and not _written_whole(problem)):
        return [_pointers(problem)]
    if problem.arch >= 100 or problem.cout > 96:
        return _many_channels(problem)
    return _few_channels(problem)


def _split(cout: int) -> tuple[int, int]:
    """Powers of two that make up the output channels of a program: 3 * 2**n without waste."""
    if cout % 192 == 0:
        return 128, 64
    if 64 < cout <= 96:
        return 64, 32
    return max(8, min(128, triton.next_power_of_2(cout))), 0


def _depth(cin: int, most: int) -> int:
    """Input channels of a step: as many as divide them, but no less than a product needs."""
    fitting = [depth for depth in (64, 32) if depth <= most and cin % depth == 0]
    return fitting[0] if fitting else 16 if cin <= 16 else 32


def _stages(values: int, most: int) -> int:
    """Steps of so many 16-bit values that fit into 200 KiB."""
    return min(most, 200 * 1024 // (2 * values))


def _box(problem: Problem, pixels: int) -> tuple[int, int]:
    """Rows and columns of that many pixels which waste the least, then the squarest of them."""

    def cost(cols: int) -> tuple[int, int]:
        rows = pixels // cols
        covered = triton.cdiv(problem.height, rows) * triton.cdiv(problem.width, cols)
        return covered, rows + cols

    cols = min((1 << e for e in range(3, pixels.bit_length())), key=cost)
    return pixels // cols, cols


def _written_whole(problem: Problem) -> bool:
    """Whether results can be written by descriptor, which cuts off channels at the last only.

    The phases of a pixel follow each other in memory: one must not write beyond its own. To write
    by address instead takes registers that the large tiles have not got.
    """
    overlapping = problem.scale > 1 and problem.cout % sum(_split(problem.cout)) != 0
    return problem.cout % 8 == 0 and not overlapping


def _fp32(problem: Problem) -> Tile:
    """Without tensor cores, whose tf32 would lose 13 bits."""
    rows, cols = _box(problem, 64)
    channels = min(64, triton.next_power_of_2(max(16, problem.cout)))
    flat = problem.cin < 16
    return Tile(rows, cols, 1, (channels, 0), depth=16, warps=4, stages=2, flat=flat)


def _pointers(problem: Problem) -> Tile:
    """Ampere, and channels that the copy engine cannot address."""
    channels = _split(problem.cout)
    rows, cols = _box(problem, 128)
    if problem.cin < 16:
        return Tile(rows, cols, 1, channels, depth=32, warps=8, stages=2, flat=True)
    warps = 8 if sum(channels) > 96 else 4
    return Tile(rows, cols, 1, channels, _depth(problem.cin, 32), warps=warps, stages=4)


def _few_channels(problem: Problem) -> list[Tile]:
    """Hopper, at most 96 output channels: pixels are the rows of the product.

    Triton waits for a product that another one into the same accumulator follows in the same step,
    which is two of three where a step takes a column. The other warp groups fill that time.
    """
    channels, depth = _split(problem.cout), _depth(problem.cin, 32)
    if problem.cout <= 8:  # bound by the reads of pixels: many lines share them
        return [Tile(1, 64, 8, channels, depth, warps=4, stages=3, tma=True, column=True)]

    def tile(
        cols: int, lines: int, warps: int, most: int, depth: int = depth, column: bool = True
    ) -> Tile:
        taps = problem.kernel[1] if column else 1
        values = (cols * (lines + taps - 1) + sum(channels) * taps) * depth
        return Tile(
            1, cols, lines, channels, depth, warps, _stages(values, most),
            tma=True, tma_out=True, column=column,
        )  # fmt: skip

    wide = -problem.width % 128 <= -problem.width % 64
    return [
        tile(128, 4, warps=8, most=3) if wide else tile(64, 4, warps=4, most=3),
        tile(64, 4, warps=4, most=2),  # two programs on a multiprocessor
        tile(128, 2, warps=8, most=2),  # the same, with four warp groups
        tile(256, 2, warps=16, most=5, depth=16),  # four warp groups in one program
        tile(256, 2, warps=8, most=4, column=False),  # no waits, but 444 TFLOP/s by L2
    ]


def _many_channels(problem: Problem) -> list[Tile]:
    """Channels are the rows of the product, as 128 + 64, and 256 pixels its columns.

    A product of 64 rows reads A and B from shared memory in 80 of the 128 cycles it takes with
    256 columns, but in all of the 32 it takes with 64: pixels, not channels, make the wide side.
    """
    channels = _split(problem.cout)

    def tile(pixels: int, most_depth: int, most: int) -> Tile:
        depth = _depth(problem.cin, most_depth)
        stages = _stages((pixels + sum(channels)) * depth, most)
        return Tile(
            *_box(problem, pixels), 1, channels, depth, warps=8, stages=stages, tma=True,
            tma_out=_written_whole(problem), channels_first=channels[0] == 128,
        )  # fmt: skip

    return [tile(256, 64, most=4), tile(256, 32, most=6), tile(128, 64, most=2)]
