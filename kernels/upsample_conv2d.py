"""Launcher of the implicit GEMM for :func:`psssr_fast.ops.upsample_conv2d`."""

from torch import Tensor

from psssr_fast.kernels._conv_tiles import Problem, Tile, library_is_faster
from psssr_fast.kernels._launch import architecture, launcher
from psssr_fast.kernels.causal_conv3d import implicit_gemm


def better_by_library(x: Tensor, weight: Tensor) -> bool:
    """Whether doubling and a library's convolution were measured to be faster than this kernel.

    Args:
        x: ``[B, C, T, H, W]``.
        weight: ``[N, C, 3, 3]``.
    """
    last = x.permute(0, 2, 3, 4, 1)
    return library_is_faster(Problem.of(last, (1, 2, 2), len(weight), 2, architecture(x)))


@launcher
def upsample_conv2d_triton(
    x: Tensor, phases: Tensor, bias: Tensor, tile: Tile | None = None
) -> Tensor:
    """Compute four 2x2 convolutions of ``[B, C, T, H, W]``, interleaved to ``[B, N, T, 2H, 2W]``.

    The programs of the four phases of a tile run side by side, so that its pixels come from L2.
    """
    weight = phases.permute(0, 1, 3, 4, 2).flatten(0, 1)[:, None]  # [4 N, 1, 2, 2, C]
    y = implicit_gemm(
        x.permute(0, 2, 3, 4, 1).contiguous(),
        weight.contiguous(),
        bias,
        frames=x.shape[2],
        scale=2,
        tile=tile,
    )
    return y.permute(0, 4, 1, 2, 3)
