"""Metrics of neighbouring frames: whether what moves keeps its looks, and moves as it should.

Each gives one number per pair of neighbours.
"""

import math

import torch
from torch import Tensor

from psssr_fast.errors import InputError
from psssr_fast.metrics.flow import Motion, warp
from psssr_fast.metrics.lpips import Lpips
from psssr_fast.metrics.pictures import check_clip, check_pair

LEAST_MOTION = 0.01  # pixels; a clip that moves less stands still


def warping_error(result: Tensor, motion: Motion) -> Tensor:
    """E*warp: how much pixels change along the motion.

    The mean over pixels that can be followed, and over channels, of the squared difference of
    frame t-1 and frame t fetched along the flow (Lai and others: Learning Blind Video Temporal
    Consistency, 2018). The flow is of ``motion``: of the ground truth, where there is one, so that
    all results are measured along one flow and the truth has an error of its own to compare with.

    Args:
        result: ``[frames, 3, height, width]`` in [0, 1].
        motion: of a clip of the same shape.

    Returns:
        fp64 ``[frames - 1]``; papers print it times 1000. NaN if no pixel can be followed.

    Raises:
        InputError: the clips differ in shape.
        UsageError: OpenCV is not installed.
    """
    check_pair(result, motion.clip)
    errors = []
    for before, after, flow, seen in zip(
        result, result[1:], motion.forward, motion.visible, strict=False
    ):
        difference = (warp(after.float().cpu(), flow) - before.float().cpu())[:, seen]
        errors.append(difference.double().square().mean())
    return torch.stack(errors)


def tof(result: Motion, truth: Motion) -> Tensor:
    """tOF: how far the result's flow is from the truth's (Chu and others: TecoGAN, 2020).

    The mean over pixels of the distance between Farneback's flows of the two. The authors drop
    two frames at each end and crop to multiples of 32 pixels; this does neither.

    Args:
        result, truth: of clips of one shape.

    Returns:
        fp64 ``[frames - 1]``, pixels.

    Raises:
        InputError: the clips differ in shape.
        UsageError: OpenCV is not installed.
    """
    check_pair(result.clip, truth.clip)
    distance = (result.farneback - truth.farneback).double().square().sum(1).sqrt()
    return distance.mean((1, 2))


def tlp(result: Tensor, truth: Tensor, lpips: Lpips) -> Tensor:
    """tLP: whether the result changes as much as the truth does (Chu and others, 2020).

    ``|LPIPS(result_t-1, result_t) - LPIPS(truth_t-1, truth_t)|``; papers print it times 100, and
    with AlexNet.

    Args:
        result, truth: ``[frames, 3, height, width]`` in [0, 1].
        lpips: the distance.

    Returns:
        fp32 ``[frames - 1]``.

    Raises:
        InputError: the clips differ in shape or have one frame.
    """
    check_pair(result, truth)
    if len(result) < 2:
        raise InputError("tLP needs at least two frames; got 1")
    return (lpips(result[:-1], result[1:]) - lpips(truth[:-1], truth[1:])).abs()


def frame_change(result: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames over pixels and channels, fp64
    ``[frames - 1]``, in 8-bit levels."""
    check_clip(result)
    return 255 * result.float().diff(dim=0).abs().flatten(1).double().mean(1)


def flow_length(motion: Motion) -> Tensor:
    """Mean length of the flow over pixels, fp64 ``[frames - 1]``, in pixels."""
    return motion.forward.double().square().sum(1).sqrt().mean((1, 2))


def tfs(change: Tensor, length: Tensor) -> Tensor:
    """TFS: how much frames change for the motion there is.

    ``TFS_t = mean |x_t - x_t-1| / mean over the whole clip of the mean flow length``: the change
    of the pictures in 8-bit levels, over pixels and RGB channels, for each pixel of motion. The
    divisor is one number for a clip, so the mean over t is the ratio of both means, and a moment
    of rest does not decide it. Flicker raises it, blur lowers it: it says something only beside
    the truth's own, along the same flow. There is no published definition.

    Args:
        change: :func:`frame_change` of the result, ``[frames - 1]``.
        length: :func:`flow_length`, of the truth where there is one, ``[frames - 1]``.

    Returns:
        fp64 ``[frames - 1]``, levels per pixel; NaN if the clip stands still (mean flow below
        0.01 pixels).
    """
    mean = length.mean()
    return change / mean if mean >= LEAST_MOTION else torch.full_like(change, math.nan)
