"""Settings, sizes and pictures for the tests of the frequency-domain update."""

from functools import cache
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.config import FrequencyUpdate

HERE = Path(__file__).parent
LERP = FrequencyUpdate()
LITERAL = FrequencyUpdate(strength=0.6, alpha_mode="literal", border=2)
RELEASE = FrequencyUpdate(alpha_mode="literal", filter="fft", border=2)
FILTERS = ["spatial19", "fft"]
SIZES = [(45, 77), (1, 1), (5, 300), (17, 19), (64, 96)]
YUV = torch.tensor(  # the release's coefficients, to and from
    [
        [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]],
        [[1, 0, 1.13983], [1, -0.39465, -0.5806], [1, 2.03211, 0]],
    ],
    dtype=torch.float64,
)


@cache
def photograph() -> Tensor:
    """A photograph, fp64 ``[1, 3, 256, 320]`` in [0, 1]."""
    with av.open(HERE / "data/photo_256.png") as file:
        pixels = next(file.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255


@cache
def blurred_photograph() -> Tensor:
    """What a base model would make of it: the same picture with less detail."""
    small = F.avg_pool2d(photograph(), 4)
    return F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)


def pictures(*size: int, frames: int = 2, dtype=torch.float32, device="cpu") -> tuple:
    """Two random clips; of bytes if ``dtype`` says so."""
    clips = torch.rand(2, frames, 3, *size, device=device)
    return tuple((255 * clips).round().to(dtype) if dtype == torch.uint8 else clips.to(dtype))
