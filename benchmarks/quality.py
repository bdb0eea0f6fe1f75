"""How close a model comes to the truth: ``python benchmarks/quality.py CLIP...``.

Every clip is reduced four times (antialiased bicubic, 8 bits) and brought back. Prints the PSNR of
luma (BT.601, full range, no border cut) over all frames.
"""

import argparse
from dataclasses import replace
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast import Upscaler
from psssr_fast.arrays import to_planar
from psssr_fast.config import Sampling, settings_for
from psssr_fast.resize import resize_frames
from psssr_fast.video import open_reader

LUMA = torch.tensor([0.299, 0.587, 0.114])


def read(path: str, frames: int) -> Tensor:
    """The last ``frames`` frames in [0, 1], height and width cut to multiples of 16."""
    with open_reader(path) as reader:
        total = sum(1 for _ in reader)
    with open_reader(path) as reader:
        clip = torch.stack(
            [to_planar(f.pixels) for f in islice(reader, max(0, total - frames), None)]
        )
    height, width = (size // 16 * 16 for size in clip.shape[-2:])
    return (clip[:, :, :height, :width] + 1) / 2


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Of luma, in dB; pictures ``[frames, 3, H, W]`` in [0, 1], rounded to 8 bits first."""
    rounded = (picture * 255).round() / 255
    error = torch.einsum("c,tchw->thw", LUMA, rounded - truth)
    return float(-10 * error.square().mean().log10())


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--frames", type=int, default=32, help="from the end of each clip")
    arguments = parser.parse_args()
    up = Upscaler.from_pretrained(arguments.model)
    released = up.settings
    rows = {
        "base step alone": replace(released, sampling=Sampling(timesteps=(699.0,))),
        "base + 3 drafts + FDU (released)": released,
        "iterated FDU, alpha 0.6 (paper)": settings_for("paper", released.windows),
    }
    for path in arguments.clips:
        truth = read(path, arguments.frames)
        size = (truth.shape[-2], truth.shape[-1])
        small = F.interpolate(
            truth, (size[0] // 4, size[1] // 4), mode="bicubic", antialias=True
        ).clamp(0, 1)
        low = (small * 255).round() / 255
        bicubic = psnr(resize_frames(low * 2 - 1, *size) / 2 + 0.5, truth)
        print(f"{path}: {len(truth)} frames {size[1]}x{size[0]}")
        print(f"  {'bicubic':34} {bicubic:.2f} dB")
        for name, settings in rows.items():
            up.settings = settings
            result = psnr(up(low), truth)
            print(f"  {name:34} {result:.2f} dB ({result - bicubic:+.2f})")


if __name__ == "__main__":
    main()
