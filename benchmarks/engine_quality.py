"""How far engine and dtype move pixels: ``python benchmarks/engine_quality.py CLIP``.

Compares ``nano`` as it runs by default (fused, this machine's dtype) with the plain networks in
fp32 on the first 16 frames: largest difference in 8-bit levels, and PSNR between the two.
"""

import sys
from itertools import islice

import numpy as np
import torch

from psssr_fast import Upscaler
from psssr_fast.video import open_reader


def main() -> None:
    """Command line of the script."""
    with open_reader(sys.argv[1]) as reader:
        clip = np.stack([frame.pixels for frame in islice(reader, 16)])
    exact = Upscaler.from_pretrained("nano", engine="plain", dtype=torch.float32)(clip)
    usual = Upscaler.from_pretrained("nano")(clip)
    difference = exact.astype(int) - usual.astype(int)
    mse = float(np.mean(difference**2.0))
    psnr = 10 * np.log10(255**2 / mse) if mse else float("inf")
    print(f"largest difference {abs(difference).max()} levels, {psnr:.2f} dB between the two")


if __name__ == "__main__":
    main()
