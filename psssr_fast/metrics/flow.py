"""Optical flow for the temporal metrics, by OpenCV: the extra ``psssr_fast[metrics]``.

``dis``: Dense Inverse Search (Kroeger, Timofte, Dai, Van Gool, 2016), preset "medium".
``farneback``: polynomial expansion (Farneback, 2003) with TecoGAN's parameters.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.errors import InputError, UsageError
from psssr_fast.metrics.pictures import check_clip

Method = Literal["dis", "farneback"]
# Pyramid scale, levels, window, iterations, neighbourhood, its sigma, flags.
_FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)
_LEAST = 16  # pixels; DIS compares patches of 8 on a pyramid


def flow_available() -> bool:
    """Whether OpenCV is installed."""
    return importlib.util.find_spec("cv2") is not None


def flow_name(method: Method) -> str:
    """What a report calls a method: with the version that computes it.

    Raises:
        UsageError: OpenCV is not installed.
    """
    return f"{'DIS' if method == 'dis' else 'Farneback'}, OpenCV {_opencv().__version__}"


def optical_flow(before: Tensor, after: Tensor, method: Method = "dis") -> Tensor:
    """Where each pixel of ``before`` is in ``after``.

    Args:
        before, after: one picture each, RGB ``[3, height, width]`` in [0, 1]; what is compared is
            their BT.601 grey in 8 bits.
        method: see above.

    Returns:
        fp32 ``[2, height, width]``: x and y in pixels.

    Raises:
        UsageError: OpenCV is not installed.
        InputError: the pictures are smaller than 16x16 or differ in size.
    """
    cv2 = _opencv()
    if before.shape != after.shape or min(before.shape[-2:]) < _LEAST:
        raise InputError(
            f"flow needs two pictures of one size, at least {_LEAST}x{_LEAST}; got "
            f"{list(before.shape)} and {list(after.shape)}"
        )
    first, second = _grey(cv2, before), _grey(cv2, after)
    with _one_thread(cv2):
        if method == "dis":
            flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(
                first, second, None
            )
        else:
            flow = cv2.calcOpticalFlowFarneback(first, second, None, *_FARNEBACK)
    return torch.from_numpy(np.ascontiguousarray(flow.transpose(2, 0, 1)))


def _opencv() -> Any:
    if not flow_available():
        raise UsageError(
            "optical flow needs OpenCV, which is not installed; install psssr_fast[metrics]"
        )
    return importlib.import_module("cv2")


def _grey(cv2: Any, picture: Tensor) -> Any:
    pixels = (picture.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    return cv2.cvtColor(pixels.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)


@contextmanager
def _one_thread(cv2: Any) -> Iterator[None]:
    """OpenCV cuts pictures into as many strips as it has threads, and DIS starts anew in each."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """``picture`` fetched along a flow, bilinearly; outside of it, its edge.

    Args:
        picture: ``[channels, height, width]``.
        flow: ``[2, height, width]``, pixels.
    """
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack((x, y)).to(flow) + flow
    ends = flow.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = (grid * 2).permute(1, 2, 0) / ends - 1
    sampled = F.grid_sample(
        picture[None], grid[None].to(picture), padding_mode="border", align_corners=True
    )
    return sampled[0]


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Which pixels of the first picture can be followed into the second.

    The rule of Ruder, Dosovitskiy and Brox as Lai and others use it: those whose way there and
    back closes, ``|f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5``, and that lie on no border between
    motions, ``|df/dx|^2 + |df/dy|^2 <= 0.01 |f|^2 + 0.002``; besides, the way must end inside of
    the picture.

    Args:
        forward: flow from the first picture to the second, ``[2, height, width]``.
        backward: from the second to the first.

    Returns:
        bool ``[height, width]``.
    """
    back = warp(backward, forward)
    length, back_length = forward.square().sum(0), back.square().sum(0)
    closed = (forward + back).square().sum(0) <= 0.01 * (length + back_length) + 0.5
    change = torch.zeros_like(length)
    change[:, :-1] += forward.diff(dim=2).square().sum(0)
    change[:-1] += forward.diff(dim=1).square().sum(0)
    smooth = change <= 0.01 * length + 0.002
    height, width = length.shape
    x = torch.arange(width).to(forward) + forward[0]
    y = torch.arange(height).to(forward)[:, None] + forward[1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return closed & smooth & inside


class Motion:
    """What moves how in a clip; each flow is computed when first asked for, and kept.

    Attributes:
        clip: ``[frames, 3, height, width]`` in [0, 1], at least two frames.
    """

    def __init__(self, clip: Tensor) -> None:
        check_clip(clip)
        if len(clip) < 2:
            raise InputError("motion needs at least two frames; got 1")
        self.clip = clip

    @cached_property
    def forward(self) -> Tensor:
        """DIS from each frame to the next, ``[frames - 1, 2, height, width]``."""
        return self._flows(self.clip[:-1], self.clip[1:], "dis")

    @cached_property
    def visible(self) -> Tensor:
        """Pixels of each frame but the last that can be followed, ``[frames - 1, H, W]``."""
        backward = self._flows(self.clip[1:], self.clip[:-1], "dis")
        return torch.stack([visible(*pair) for pair in zip(self.forward, backward, strict=True)])

    @cached_property
    def farneback(self) -> Tensor:
        """Farneback's flow from each frame to the next."""
        return self._flows(self.clip[:-1], self.clip[1:], "farneback")

    @staticmethod
    def _flows(before: Tensor, after: Tensor, method: Method) -> Tensor:
        pairs = zip(before, after, strict=True)
        return torch.stack([optical_flow(a, b, method) for a, b in pairs])
