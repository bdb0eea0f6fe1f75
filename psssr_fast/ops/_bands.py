"""Convolutions of more elements than a library can count, in bands over the height.

A frame group of the Wan VAE at 3840x2160 has 96 x 4 x 2160 x 3840 = 1.48 * 2^31 elements. Our own
kernels address with 64 bits and take it whole. For a library nothing is certain there: cuDNN can
split such a tensor by its batch only, and has had 64-bit addresses since 9.3; before that, torch
falls back to a convolution that copies the input once for every tap. So a library is given bands
of rows, each with the rows around it that its results depend on.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LIMIT = 2**31 - 1  # elements of a tensor that a library reads or writes in one call


def in_bands(
    run: Callable[[slice], Tensor], height: int, elements: int, halo: int = 0, step: int = 1
) -> Tensor:
    """Compute a clip in bands of rows: in one if that is within :data:`LIMIT`, else in several.

    Args:
        run: computes the result from these rows of the input as if there were no others;
            ``[B, C, T, H', W']``, with ``H'`` proportional to the number of rows.
        height: rows of the input.
        elements: for a row of the input, of the largest tensor that a library reads or writes.
        halo: rows above and below a row that its results depend on; a multiple of ``step``.
        step: rows that belong together, where the result has fewer rows than the input.

    Returns:
        What ``run(slice(0, height))`` returns, but for the rounding of a library that computes
        pictures of another height in another way. Bands have ``step`` rows at least, even if a
        row is so wide that those are too many.
    """
    most = LIMIT // elements - 1  # one for the padding that a layer adds itself
    if height <= most:
        return run(slice(0, height))
    rows = max(step, (most - 2 * halo) // step * step)
    result: Tensor | None = None
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - halo), min(height, bottom + halo)
        part = run(slice(first, last))
        up, down = part.shape[-2], last - first  # so many rows become so many
        if result is None:
            shape = *part.shape[:-2], height * up // down, part.shape[-1]
            layout = torch.channels_last_3d
            result = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout)
        begin, end = ((row - first) * up // down for row in (top, bottom))
        result[..., top * up // down : bottom * up // down, :] = part[..., begin:end, :]
        del part  # before the next is computed
    assert result is not None
    return result
