"""Settings: frozen, typed, with units; every published reading of the method is a field here."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from psssr_fast.errors import UsageError


class Profile(StrEnum):
    """Which reading of PS-SR to run."""

    RELEASED = "released"  # the mathematics of the public release
    PAPER = "paper"  # equations 5, 6, 13 and 14 of the paper, iterated over all drafts


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class Sampling:
    """The steps of the sampler: one of the base, then one for each later timestep.

    Attributes:
        timesteps: what the time embedding sees, 0 to 1000, falling; the first is the base's.
        timestep_rounding: ``"bf16"`` rounds the timesteps to bfloat16 as the release does
            (699 becomes 700); ``"none"`` keeps them.
        draft_condition: second half of the draft's input channels: ``"latents"`` repeats the
            low-resolution latents (the release's inference), ``"zeros"`` is its training code.
    """

    timesteps: tuple[float, ...] = (699.0, 599.0, 499.0, 399.0)
    timestep_rounding: Literal["bf16", "none"] = "bf16"
    draft_condition: Literal["latents", "zeros"] = "latents"

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        _require(
            len(self.timesteps) >= 1 and falling and 0 < self.timesteps[-1] <= 1000,
            f"timesteps must fall and lie in (0, 1000]; got {self.timesteps}",
        )
        _require(
            self.timestep_rounding in ("bf16", "none"),
            f"timestep_rounding must be 'bf16' or 'none'; got {self.timestep_rounding!r}",
        )
        _require(
            self.draft_condition in ("latents", "zeros"),
            f"draft_condition must be 'latents' or 'zeros'; got {self.draft_condition!r}",
        )


@dataclass(frozen=True)
class FrequencyUpdate:
    """How the draft's detail joins the base's picture (section 3.5 of the paper).

    Attributes:
        cutoff: radius of the Butterworth low-pass, cycles per pixel.
        order: its order.
        strength: alpha, the weight of the high frequencies.
        alpha_mode: ``"lerp"``: Y' = Y + alpha w (H_sharp - H_consistent);
            ``"literal"``: Y' = L + alpha (w H_sharp + (1 - w) H_consistent), equation 14.
        filter: ``"spatial19"``, a 19x19 kernel that does not depend on the window, ``"fft"``,
            the release's circular filter, or ``"none"``: no update, the draft's picture as it is.
        border: pixels at each edge where the base's luma is kept (the release keeps 2, to hide
            the wrap-around of its circular filter).
        iterate: ``True`` updates after every draft step (paper), ``False`` once with the last.
        strict: high-pass the change of luma once more, so that low frequencies move less.
        eps: added to the denominator of the weight.
    """

    cutoff: float = 0.2
    order: int = 2
    strength: float = 1.0
    alpha_mode: Literal["lerp", "literal"] = "lerp"
    filter: Literal["spatial19", "fft", "none"] = "spatial19"
    border: int = 0
    iterate: bool = False
    strict: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _require(0 < self.cutoff <= 0.5, f"cutoff must lie in (0, 0.5]; got {self.cutoff}")
        _require(self.order >= 1, f"order must be at least 1; got {self.order}")
        _require(
            0 <= self.strength <= 2, f"strength (alpha) must lie in [0, 2]; got {self.strength}"
        )
        _require(
            self.alpha_mode in ("lerp", "literal"),
            f"alpha_mode must be 'lerp' or 'literal'; got {self.alpha_mode!r}",
        )
        _require(
            self.filter in ("spatial19", "fft", "none"),
            f"filter must be 'spatial19', 'fft' or 'none'; got {self.filter!r}",
        )
        _require(self.border >= 0, f"border must not be negative; got {self.border}")


@dataclass(frozen=True)
class Windows:
    """How a clip is cut for the model: sizes and overlaps of the windows, at output resolution.

    Attributes:
        frames, height, width: largest window, in frames and output pixels.
        overlap_frames: frames that consecutive windows share.
        overlap_pixels: pixels that neighbouring windows share, in both directions.
        feather: ``"shared"`` blends only where windows really overlap; ``"released"`` ramps from
            1e-6 to 1 at both ends of every window, as the release does.
    """

    frames: int = 33
    height: int = 720
    width: int = 1280
    overlap_frames: int = 8
    overlap_pixels: int = 128
    feather: Literal["shared", "released"] = "shared"

    def __post_init__(self) -> None:
        for name, size, overlap in (
            ("frames", self.frames, self.overlap_frames),
            ("height", self.height, self.overlap_pixels),
            ("width", self.width, self.overlap_pixels),
        ):
            _require(size >= 1, f"window {name} must be at least 1; got {size}")
            _require(
                0 <= overlap < size,
                f"window {name}={size} must be larger than its overlap {overlap}; take a larger "
                "window or a smaller overlap",
            )
        _require(
            self.feather in ("shared", "released"),
            f"feather must be 'shared' or 'released'; got {self.feather!r}",
        )


@dataclass(frozen=True)
class SceneCuts:
    """Where windows in time start anew, so that nothing is blended across a cut.

    Attributes:
        detector: ``"auto"`` is the built-in detector of :mod:`psssr_fast.scenes`;
            ``"scenedetect"`` is PySceneDetect's adaptive one; ``"off"`` takes all for one scene.
        threshold: least change that can be a cut, as a share of the range of brightness.
    """

    detector: Literal["auto", "scenedetect", "off"] = "auto"
    threshold: float = 0.08

    def __post_init__(self) -> None:
        _require(
            self.detector in ("auto", "scenedetect", "off"),
            f"detector must be 'auto', 'scenedetect' or 'off'; got {self.detector!r}",
        )
        _require(0 < self.threshold < 1, f"threshold must lie in (0, 1); got {self.threshold}")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the picture.

    Attributes:
        resize: how the input is brought to output size before the model sees it.
        released_rounding: truncate to 8 bits as the release does, instead of rounding to nearest.
    """

    profile: Profile = Profile.RELEASED
    sampling: Sampling = field(default_factory=Sampling)
    windows: Windows = field(default_factory=Windows)
    frequency_update: FrequencyUpdate = field(default_factory=FrequencyUpdate)
    scenes: SceneCuts = field(default_factory=SceneCuts)
    resize: Literal["bicubic", "bilinear", "area"] = "bicubic"
    released_rounding: bool = False

    def __post_init__(self) -> None:
        _require(
            self.resize in ("bicubic", "bilinear", "area"),
            f"resize must be 'bicubic', 'bilinear' or 'area'; got {self.resize!r}",
        )


def settings_for(profile: Profile | str, windows: Windows | None = None) -> Settings:
    """The settings of a profile, with the given windows.

    Raises:
        UsageError: ``profile`` is not one of ``released`` and ``paper``.
    """
    try:
        profile = Profile(profile)
    except ValueError:
        known = ", ".join(Profile)
        raise UsageError(f"no such profile: {profile!r}; known: {known}") from None
    if profile is Profile.PAPER:
        update = FrequencyUpdate(strength=0.6, alpha_mode="lerp", iterate=True)
    else:
        update = FrequencyUpdate(strength=1.0, alpha_mode="literal")  # the script's --alpha
    return Settings(profile=profile, windows=windows or Windows(), frequency_update=update)
