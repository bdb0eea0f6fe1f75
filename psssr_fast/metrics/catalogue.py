"""Every metric by name: what it needs, how it is shown, how one frame of one result is measured."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from psssr_fast.errors import ModelError, UsageError
from psssr_fast.metrics.consistency import drift, lr_consistency
from psssr_fast.metrics.flow import flow_available
from psssr_fast.metrics.niqe import BLOCK, niqe
from psssr_fast.metrics.psnr import psnr
from psssr_fast.metrics.shots import Shot, Tools
from psssr_fast.metrics.ssim import ssim
from psssr_fast.metrics.temporal import frame_change, tlp, tof, warping_error

ALL = "all"
WEIGHTS_VARIABLE = "PSSSR_METRICS_WEIGHTS"
Measure = Callable[[Shot, Tools], Tensor]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: on the command line and in JSON.
        title: in tables and plots, with its unit.
        higher: whether more is better; ``None`` if the truth's own value is best.
        measure: gives one number for a shot, as a tensor of one element.
        factor: what it is multiplied by, as papers print it.
        digits: decimals shown.
        needs: of ``"truth"``, ``"input"``, ``"base"``.
        pair: needs the frame before.
        flow: needs OpenCV.
        weights: files it needs, without ``.safetensors``.
        slow: takes seconds a frame on a CPU, so only computed when asked for.
        per_motion: divided by the clip's mean flow length in the end.
    """

    name: str
    title: str
    higher: bool | None
    measure: Measure
    factor: float = 1.0
    digits: int = 4
    needs: tuple[str, ...] = ()
    pair: bool = False
    flow: bool = False
    weights: tuple[str, ...] = ()
    slow: bool = False
    per_motion: bool = False


@dataclass(frozen=True)
class Missing:
    """A metric that was not computed, and why."""

    name: str
    why: str


def _psnr(shot: Shot, tools: Tools) -> Tensor:
    return psnr(shot.frame, shot.moment["truth"])


def _psnr_luma(shot: Shot, tools: Tools) -> Tensor:
    return psnr(shot.frame, shot.moment["truth"], luma=True)


def _ssim(shot: Shot, tools: Tools) -> Tensor:
    return ssim(shot.frame, shot.moment["truth"])


def _ssim_luma(shot: Shot, tools: Tools) -> Tensor:
    return ssim(shot.frame, shot.moment["truth"], luma=True)


def _alex(shot: Shot, tools: Tools) -> Tensor:
    return tools.alex(shot.frame, shot.moment["truth"])


def _vgg(shot: Shot, tools: Tools) -> Tensor:
    return tools.vgg(shot.frame, shot.moment["truth"])


def _dists(shot: Shot, tools: Tools) -> Tensor:
    return tools.dists(shot.frame, shot.moment["truth"])


def _niqe(shot: Shot, tools: Tools) -> Tensor:
    return niqe(shot.frame)


def _warping(shot: Shot, tools: Tools) -> Tensor:
    return warping_error(shot.pair, shot.motion)


def _tof(shot: Shot, tools: Tools) -> Tensor:
    return tof(shot.own_motion, shot.moment.motion)


def _tlp(shot: Shot, tools: Tools) -> Tensor:
    return tlp(shot.pair, shot.moment.truth_pair, tools.alex)


def _change(shot: Shot, tools: Tools) -> Tensor:
    return frame_change(shot.pair)


def _consistency(shot: Shot, tools: Tools) -> Tensor:
    return lr_consistency(shot.frame, shot.moment["input"])


def _drift(shot: Shot, tools: Tools) -> Tensor:
    return drift(shot.frame, shot.moment["base"])


TRUTH = ("truth",)
METRICS = (
    Metric("psnr", "PSNR, dB", True, _psnr, digits=3, needs=TRUTH),
    Metric("psnr-y", "PSNR-Y, dB", True, _psnr_luma, digits=3, needs=TRUTH),
    Metric("ssim", "SSIM", True, _ssim, needs=TRUTH),
    Metric("ssim-y", "SSIM-Y", True, _ssim_luma, needs=TRUTH),
    Metric("lpips-alex", "LPIPS-Alex", False, _alex, needs=TRUTH, weights=("lpips_alex",)),
    Metric("lpips-vgg", "LPIPS-VGG", False, _vgg, needs=TRUTH, weights=("lpips_vgg",), slow=True),
    Metric(
        "dists",
        "DISTS",
        False,
        _dists,
        needs=TRUTH,
        weights=("lpips_vgg", "dists_alpha_beta"),
        slow=True,
    ),
    Metric("niqe", "NIQE", False, _niqe, digits=3),
    Metric("ewarp", "E*warp, 1e-3", False, _warping, factor=1000, pair=True, flow=True),
    Metric("tof", "tOF, px", False, _tof, needs=TRUTH, pair=True, flow=True),
    Metric(
        "tlp",
        "tLP, 1e-2",
        False,
        _tlp,
        factor=100,
        needs=TRUTH,
        pair=True,
        weights=("lpips_alex",),
    ),
    Metric("tfs", "TFS, levels/px", None, _change, pair=True, flow=True, per_motion=True),
    Metric("lr-psnr", "LR consistency, dB", True, _consistency, digits=3, needs=("input",)),
    Metric("drift", "LF drift, levels", False, _drift, needs=("base",)),
)
NAMES = tuple(metric.name for metric in METRICS)


def choose(
    wanted: Iterable[str] | None, given: Iterable[str], weights: Path | None, size: tuple[int, int]
) -> tuple[tuple[Metric, ...], tuple[Missing, ...]]:
    """Decide what can be computed.

    Args:
        wanted: names; ``None`` for all that are quick, ``("all",)`` for all.
        given: which of ``"truth"``, ``"input"`` and ``"base"`` there are.
        weights: the directory with the networks' files, if any.
        size: height and width of the measured picture.

    Returns:
        The metrics to compute, and those left out.

    Raises:
        UsageError: one that was asked for by name does not exist, or lacks a clip or OpenCV.
        ModelError: one that was asked for by name lacks its weights.
    """
    names = None if wanted is None else tuple(wanted)
    unknown = [name for name in names or () if name not in (*NAMES, ALL)]
    if unknown:
        raise UsageError(f"no such metric: {unknown[0]!r}; known: {', '.join((*NAMES, ALL))}")
    chosen, missing = [], []
    for metric in METRICS:
        asked = names is not None and metric.name in names
        if names is not None and not asked and ALL not in names:
            continue
        obstacle = _obstacle(metric, tuple(given), weights, size)
        if obstacle is None and metric.slow and names is None:
            missing.append(Missing(metric.name, "seconds a frame; ask for it with --metrics"))
        elif obstacle is None:
            chosen.append(metric)
        elif asked:
            raise type(obstacle)(f"{metric.name} cannot be computed: {obstacle}")
        else:
            missing.append(Missing(metric.name, str(obstacle)))
    return tuple(chosen), tuple(missing)


_OPTIONS = {"truth": "--reference", "input": "--input", "base": "--base"}


def _obstacle(
    metric: Metric, given: tuple[str, ...], weights: Path | None, size: tuple[int, int]
) -> UsageError | ModelError | None:
    """Why a metric cannot be computed, if so."""
    for need in metric.needs:
        if need not in given:
            return UsageError(f"it needs {_OPTIONS[need]}")
    if metric.flow and not flow_available():
        return UsageError("it needs OpenCV; install psssr_fast[metrics]")
    if metric.name == "niqe" and (size[0] // BLOCK) * (size[1] // BLOCK) < 2:
        return UsageError(f"it needs two blocks of {BLOCK}x{BLOCK} pixels")
    for name in metric.weights:
        if weights is None:
            return ModelError(
                f"it needs {name}.safetensors; name its directory with --weights or "
                f"{WEIGHTS_VARIABLE}"
            )
        if not (weights / f"{name}.safetensors").is_file():
            return ModelError(f"{weights} has no {name}.safetensors")
    return None
