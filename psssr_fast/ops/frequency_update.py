"""The frequency-domain update: the draft's detail on the base's picture (paper, section 3.5).

Colours and low frequencies stay those of the *consistent* picture; only luma's high frequencies
move towards those of the *sharp* one, where the sharp one has more of them. With ``Y`` the luma of
Rec. 601, ``L`` its low frequencies and ``H = Y - L``::

    w  = |H_sharp| / (|H_sharp| + |H_consistent| + eps)                       (equation 13)
    Y' = Y_consistent + alpha w (H_sharp - H_consistent)                      alpha_mode "lerp"
    Y' = L_consistent + alpha (w H_sharp + (1 - w) H_consistent)              "literal", equation 14
    out = clamp(rgb_consistent + (Y' - Y_consistent), 0, 1)

The last line adds one number to all three channels, which changes Y and leaves U and V alone. It
replaces the round trip through YUV, whose published coefficients are rounded: they differ by up to
2.1e-5.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.errors import UsageError
from psssr_fast.native import native_available

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
RADIUS = 9  # of the 19x19 low-pass
RANK = 4  # of its separable form
# The release's grid has -0.5 and 0.5 at both ends of `size` frequencies, so its cutoff shrinks by
# (size - 1) / size. 961 is about the geometric mean of 720 and 1280, the sides of its window, and
# odd, which makes the taps symmetric.
GRID = 961
MISSING_MASS = 0.005  # how much of the low-pass may lie outside 19x19


def luma(picture: Tensor) -> Tensor:
    """Luma of an RGB picture, ``[..., 3, H, W]`` to ``[..., H, W]``, in fp32 at least."""
    red, green, blue = picture.to(torch.promote_types(picture.dtype, torch.float32)).unbind(-3)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def butterworth(height: int, width: int, cutoff: float, order: int) -> Tensor:
    """The low-pass ``1 / (1 + (r / cutoff)^(2 order))`` as the release samples it.

    Returns:
        fp64 ``[height, width]``, zero frequency at ``[0, 0]`` as FFTs have it. ``r`` is in cycles
        per pixel, from a grid on which both -0.5 and 0.5 lie, so opposite frequencies of an even
        size have different gains.
    """
    y = torch.linspace(-0.5, 0.5, height, dtype=torch.float64)
    x = torch.linspace(-0.5, 0.5, width, dtype=torch.float64)
    radius = (y[:, None].square() + x.square()).sqrt()
    return torch.fft.ifftshift(1 / (1 + (radius / cutoff) ** (2 * order)))


@lru_cache(maxsize=4)
def _symmetric_gain(height: int, width: int, cutoff: float, order: int) -> Tensor:
    """Mean of the gains at opposite frequencies, at the frequencies a real FFT has."""
    gain = butterworth(height, width, cutoff, order)
    opposite = gain.flip(0, 1).roll((1, 1), (0, 1))
    return ((gain + opposite) / 2)[:, : width // 2 + 1].contiguous()


def fft_low_pass(lumas: Tensor, cutoff: float, order: int) -> Tensor:
    """The release's circular filter over the whole picture, ``[..., H, W]``.

    The release keeps the real part of what its mask gives, which has no symmetry on even sizes.
    That is what the mean of the gains at opposite frequencies gives, with which a real FFT
    suffices.
    """
    height, width = lumas.shape[-2:]
    gain = _symmetric_gain(height, width, cutoff, order).to(lumas)
    return torch.fft.irfft2(torch.fft.rfft2(lumas) * gain, s=(height, width))


@lru_cache(maxsize=16)
def separable_low_pass(cutoff: float, order: int) -> tuple[Tensor, Tensor]:
    """The Butterworth low-pass as 19x19 taps of rank 4 that sum to 1.

    At the default cutoff 0.2 and order 2 the singular values are 1, 0.036, 0.028, 0.0022, 0.0005:
    the four kept carry all but 0.0022 of the taps (sum of absolute differences).

    Returns:
        Columns and rows, fp64 ``[4, 19]`` each; the taps are ``columns.T @ rows``.

    Raises:
        UsageError: the filter does not fit into 19x19 taps.
    """
    taps = torch.fft.fftshift(torch.fft.ifft2(butterworth(GRID, GRID, cutoff, order)).real)
    near = slice(GRID // 2 - RADIUS, GRID // 2 + RADIUS + 1)
    taps = taps[near, near]
    if (taps.sum() - 1).abs() > MISSING_MASS:
        raise UsageError(
            f"frequency_update: filter 'spatial19' cannot hold cutoff={cutoff}, order={order}: "
            f"its 19x19 taps sum to {taps.sum():.3f}, not 1; use filter='fft' or the cutoff 0.2"
        )
    values, vectors = torch.linalg.eigh(taps)  # taps are symmetric in x and y
    largest = values.abs().argsort(descending=True)[:RANK]
    columns = vectors[:, largest].T.contiguous()
    rows = values[largest, None] * columns
    return columns, rows / (columns.T @ rows).sum()


def spatial_low_pass(lumas: Tensor, cutoff: float, order: int) -> Tensor:
    """The same filter as 19x19 taps with edges repeated, ``[T, H, W]``.

    Unlike :func:`fft_low_pass` it reaches 9 pixels and no further, so it does not depend on where
    a window ends. The convolution is exact but computed by FFT, on the CPU ten times faster than
    ``conv2d``: the repeated edges hold what wraps around.
    """
    height, width = lumas.shape[-2:]
    columns, rows = separable_low_pass(cutoff, order)
    taps = (columns.T @ rows).to(lumas)
    padded = F.pad(lumas[:, None], (RADIUS,) * 4, mode="replicate")[:, 0]
    fast = [-(-size // 64) * 64 for size in padded.shape[-2:]]  # FFTs are slow on prime sizes
    spectrum = torch.fft.rfft2(padded, s=fast) * torch.fft.rfft2(taps, s=fast)
    complete = slice(2 * RADIUS, 2 * RADIUS + height), slice(2 * RADIUS, 2 * RADIUS + width)
    return torch.fft.irfft2(spectrum, s=fast)[:, *complete]


def low_pass(lumas: Tensor, settings: FrequencyUpdate) -> Tensor:
    """Low frequencies of ``[T, H, W]`` with the filter that ``settings`` names."""
    filtered = fft_low_pass if settings.filter == "fft" else spatial_low_pass
    return filtered(lumas, settings.cutoff, settings.order)


def detail_weight(high_consistent: Tensor, high_sharp: Tensor, eps: float) -> Tensor:
    """Equation 13, in [0, 1): 0 where neither picture has detail."""
    size = high_sharp.abs()
    return size / (size + high_consistent.abs() + eps)


def luma_change(consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate) -> Tensor:
    """``Y' - Y_consistent``, ``[T, H, W]``, before any clamp; zero within ``settings.border``."""
    lumas = torch.cat([luma(consistent), luma(sharp)])
    high_consistent, high_sharp = (lumas - low_pass(lumas, settings)).chunk(2)
    weight = detail_weight(high_consistent, high_sharp, settings.eps)
    if settings.alpha_mode == "literal":
        blend = weight * high_sharp + (1 - weight) * high_consistent
        change = settings.strength * blend - high_consistent
    else:
        change = settings.strength * weight * (high_sharp - high_consistent)
    if settings.strict:
        change = change - low_pass(change, settings)
    inside = torch.zeros_like(change, dtype=torch.bool)
    border, height, width = settings.border, *change.shape[-2:]
    inside[:, border : height - border, border : width - border] = True
    return torch.where(inside, change, 0)


def _check(consistent: Tensor, sharp: Tensor) -> None:
    for name, picture in (("consistent", consistent), ("sharp", sharp)):
        number = picture.is_floating_point() or picture.dtype == torch.uint8
        if not (number and picture.dim() == 4 and picture.shape[1] == 3):
            raise UsageError(
                f"frequency_update: {name} must be floating point or uint8 [T, 3, H, W]; got "
                f"{picture.dtype} {list(picture.shape)}; convert it to RGB planes in [0, 1] or "
                "0 to 255"
            )
    if consistent.shape != sharp.shape or consistent.dtype != sharp.dtype:
        raise UsageError(
            "frequency_update: both pictures need one shape and dtype; got consistent "
            f"{consistent.dtype} {list(consistent.shape)} and sharp {sharp.dtype} "
            f"{list(sharp.shape)}"
        )
    if consistent.numel() == 0:
        raise UsageError(
            f"frequency_update: the pictures are empty, {list(consistent.shape)}; pass at least "
            "one frame of one pixel"
        )


def _unit(picture: Tensor) -> Tensor:
    """Bytes as fp32 in [0, 1]; anything else as it is."""
    return picture / 255 if picture.dtype == torch.uint8 else picture


def _as_dtype(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`_unit`, rounded to nearest."""
    if dtype == torch.uint8:
        unit = (255 * unit).round().clamp(0, 255)
    return unit.to(dtype)


def frequency_update_detail_ref(
    consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate
) -> tuple[Tensor, Tensor]:
    """Compute :func:`update_frequencies_with_detail` in plain PyTorch."""
    _check(consistent, sharp)
    pairs = zip(consistent.split(1), sharp.split(1), strict=True)  # a frame at a time: less memory
    change = torch.cat([luma_change(_unit(a), _unit(b), settings) for a, b in pairs])
    fused = (_unit(consistent) + change[:, None]).clamp(0, 1).contiguous()
    return _as_dtype(fused, consistent.dtype), _as_dtype(change.abs(), consistent.dtype)


def frequency_update_ref(consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate) -> Tensor:
    """Compute :func:`frequency_update` in plain PyTorch; every filter, mode and dtype."""
    return frequency_update_detail_ref(consistent, sharp, settings)[0]


@torch.library.custom_op("psssr_fast::frequency_update", mutates_args=())
def frequency_update(
    consistent: Tensor,
    sharp: Tensor,
    cutoff: float,
    order: int,
    strength: float,
    literal: bool,
    fft: bool,
    border: int,
    strict: bool,
    eps: float,
) -> Tensor:
    """Put the detail of ``sharp`` on ``consistent``; see the head of this module.

    Most callers want :func:`update_frequencies`, which takes the settings as one object.

    Args:
        consistent: ``[T, 3, H, W]`` RGB in [0, 1], fp16, bf16, fp32 or fp64, or 0 to 255, uint8.
            Computed in fp32 at least, by kernels unless ``fft``, ``strict`` or fp64 is asked. That
            on CUDA filters fp16 values, two for each of fp32: beyond 3000 times white gives NaN.
        sharp: like ``consistent``, which gives shape and dtype.
        cutoff, order, strength, border, strict, eps: as in
            :class:`~psssr_fast.config.FrequencyUpdate`.
        literal: ``alpha_mode`` is ``"literal"``, not ``"lerp"``.
        fft: ``filter`` is ``"fft"``, not ``"spatial19"``.

    Returns:
        Contiguous, shape and dtype of ``consistent``, clamped to [0, 1], or rounded to the nearest
        of 0 to 255. NaN stays NaN.

    Raises:
        UsageError: wrong shapes or dtypes, or a filter that does not fit into 19x19 taps.
    """
    settings = _settings(cutoff, order, strength, literal, fft, border, strict, eps)
    return frequency_update_ref(consistent, sharp, settings)


@frequency_update.register_fake
def _(consistent: Tensor, sharp: Tensor, *settings: Any) -> Tensor:
    _check(consistent, sharp)
    return consistent.new_empty(consistent.shape)


@frequency_update.register_kernel("cuda")
def _(consistent: Tensor, sharp: Tensor, *settings: Any) -> Tensor:
    return _update(consistent, sharp, _settings(*settings), detail=False)[0]


if native_available():

    @frequency_update.register_kernel("cpu")
    def _(consistent: Tensor, sharp: Tensor, *settings: Any) -> Tensor:
        return _update(consistent, sharp, _settings(*settings), detail=False)[0]


def _settings(
    cutoff: float,
    order: int,
    strength: float,
    literal: bool,
    fft: bool,
    border: int,
    strict: bool,
    eps: float,
) -> FrequencyUpdate:
    return FrequencyUpdate(
        cutoff=cutoff,
        order=order,
        strength=strength,
        alpha_mode="literal" if literal else "lerp",
        filter="fft" if fft else "spatial19",
        border=border,
        strict=strict,
        eps=eps,
    )


def _update(
    consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate, detail: bool
) -> tuple[Tensor, Tensor]:
    """Run the kernel of this device if it has one that computes this, or the reference."""
    _check(consistent, sharp)
    no_kernel = settings.filter == "fft" or settings.strict or consistent.dtype == torch.float64
    if consistent.is_cuda and not no_kernel:
        return _update_on_cuda(consistent, sharp, settings, detail)
    if consistent.device.type == "cpu" and native_available() and not no_kernel:
        fused, change = _update_natively(_unit(consistent), _unit(sharp), settings, detail)
        return _as_dtype(fused, consistent.dtype), _as_dtype(change, consistent.dtype)
    return frequency_update_detail_ref(consistent, sharp, settings)


def _update_on_cuda(
    consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate, detail: bool
) -> tuple[Tensor, Tensor]:
    """Launch ``kernels/frequency_update.py``; without ``detail`` the second tensor is empty."""
    from psssr_fast.kernels.frequency_update import frequency_update_triton

    return frequency_update_triton(
        consistent,
        sharp,
        *separable_low_pass(settings.cutoff, settings.order),
        strength=settings.strength,
        literal=settings.alpha_mode == "literal",
        border=settings.border,
        eps=settings.eps,
        detail=detail,
    )


def _update_natively(
    consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate, detail: bool
) -> tuple[Tensor, Tensor]:
    """Run ``csrc/frequency_update.cpp``; without ``detail`` the second tensor is empty."""
    from psssr_fast import _C

    _check(consistent, sharp)
    columns, rows = separable_low_pass(settings.cutoff, settings.order)
    fused, change = _C.frequency_update(
        consistent.float().contiguous(),
        sharp.float().contiguous(),
        columns.float(),
        rows.float(),
        settings.strength,
        settings.alpha_mode == "literal",
        settings.border,
        settings.eps,
        detail,
    )
    return fused.to(consistent.dtype), change.to(consistent.dtype)


def update_frequencies(consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate) -> Tensor:
    """Put the detail of ``sharp`` on ``consistent``: :func:`frequency_update` with settings.

    ``settings.iterate`` is the caller's: this is one update.
    """
    return frequency_update(
        consistent,
        sharp,
        settings.cutoff,
        settings.order,
        settings.strength,
        settings.alpha_mode == "literal",
        settings.filter == "fft",
        settings.border,
        settings.strict,
        settings.eps,
    )


def update_frequencies_with_detail(
    consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate
) -> tuple[Tensor, Tensor]:
    """Like :func:`update_frequencies`, and say how much detail was invented where.

    Returns:
        The picture, and ``|Y' - Y_consistent|`` before the clamp, ``[T, H, W]`` with the dtype of
        ``consistent``; in units of the picture, 1 (or 255) is the step from black to white.
    """
    return _update(consistent, sharp, settings, detail=True)


@dataclass(frozen=True)
class LowFrequencyDrift:
    """How far an update moved the low frequencies of luma, in 8-bit levels (1/255).

    Attributes:
        rms: root mean square over all pixels and frames.
        maximum: largest absolute value.
    """

    rms: float
    maximum: float


def low_frequency_drift(
    before: Tensor, after: Tensor, settings: FrequencyUpdate
) -> LowFrequencyDrift:
    """Measure ``L(Y_after - Y_before)``, which would be 0 if the update were exact.

    It is not: the weight varies from pixel to pixel, so ``w H`` is not band-limited, and a
    Butterworth filter applied twice is not itself. For a photograph and its average over 4x4
    pixels, alpha 1, the rms is 2.2 levels, and 1.1 with ``strict``.

    No by-product of the update: it is a second filter, of what the first one made.

    Args:
        before, after: ``[T, 3, H, W]``, as given to and got from an update.
        settings: whose filter says what is low.

    Raises:
        UsageError: wrong shapes or dtypes, or a filter that does not fit into 19x19 taps.
    """
    _check(before, after)
    drift = 255 * low_pass(luma(_unit(after)) - luma(_unit(before)), settings)
    return LowFrequencyDrift(drift.square().mean().sqrt().item(), drift.abs().max().item())
