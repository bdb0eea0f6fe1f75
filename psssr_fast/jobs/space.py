"""How much room a job needs on the disk."""

from collections.abc import Sequence

from psssr_fast.jobs.journal import Chunk

# Measured on film-like clips with libx264 at its default quality; other settings differ.
_BITS_PER_PIXEL = 0.15
_PNG_BYTES_PER_PIXEL = 1.8


def estimate(
    size: tuple[int, int], total: int | None, images: bool, chunks: Sequence[Chunk] = ()
) -> int | None:
    """Bytes that a job will still write, about; ``None`` if the number of frames is unknown.

    A video is written twice: as chunks, and as the output, before the chunks are removed.

    Args:
        size: of the output: width, height.
        total: frames of the output.
        images: it is a folder of PNG frames.
        chunks: what is there already; the rest is taken to be like it.
    """
    done = sum(chunk.frames for chunk in chunks)
    written = sum(chunk.bytes for chunk in chunks)
    if total is None:
        return None
    pixels = size[0] * size[1]
    rate = pixels * (_PNG_BYTES_PER_PIXEL if images else _BITS_PER_PIXEL / 8)
    if done:
        rate = written / done
    left = rate * max(0, total - done)
    return round(left if images else written + 2 * left)
