"""What a training run is: a frozen recipe, kept as JSON beside (and in) the weights it makes."""

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from psssr_fast.errors import UsageError
from psssr_fast.models.sizes import SIZES, CodecSize
from psssr_fast.training.data import ClipShape
from psssr_fast.training.degradation import DEGRADATIONS

STAGES = ("codec", "teacher", "base", "pixel", "draft")
"""In their order. ``codec`` and ``teacher`` (a denoiser of latents, for VSD) are for sizes that
have no published ones; ``pixel`` is the second half of the base's training."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Steps:
    """Optimisation steps of each stage."""

    codec: int = 0
    teacher: int = 0
    base: int = 20_000
    pixel: int = 5_000
    draft: int = 20_000


@dataclass(frozen=True)
class Weights:
    """Of the losses (paper, section 4.1); 0 leaves a loss out, and the networks it needs.

    Attributes:
        l2, vsd, adversarial: in latent space.
        pixel, lpips: of decoded pictures.
        temporal: of the changes from frame to frame of decoded pictures (not in the paper).
        known: in stage ``pixel``, of the picture that a codec of ours decodes from the true
            latents, so that these keep their meaning while the codec learns on (likewise).
    """

    l2: float = 1.0
    vsd: float = 1.0
    adversarial: float = 0.1
    pixel: float = 1.0
    lpips: float = 2.0
    temporal: float = 0.0
    known: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        size: a name of :data:`psssr_fast.models.sizes.SIZES`.
        seed: of initialisation, data and noise.
        steps: length of each stage.
        weights: of the losses.
        clips: what is trained on.
        batch: clips of one process in a step.
        lora_rank: of the base's adapters on q, k, v, o and the feed-forward network; 0 trains the
            whole base.
        regulariser_rank: of the adapters that VSD puts on the teacher.
        learning_rate: AdamW's, after ``warmup`` steps.
        critic_rate: of the discriminator and of VSD's adapters.
        beta2: AdamW's memory of squared gradients.
        weight_decay, clip_norm: AdamW's decay, and the largest norm of a gradient.
        warmup: steps in which the rate rises from zero.
        decay: ``"constant"``, or ``"cosine"`` to zero at the end of a stage.
        ema: of the weights that are kept; 0 keeps the last ones.
        precision: ``"bf16"`` is autocast with weights in fp32.
        vsd_timesteps: lowest and highest timestep of VSD.
        guidance: of the teacher, classifier-free; 1 is none.
        crop_latents: side of the crops that the pixel losses decode, in latents.
        crop_frames: their latent frames.
        pixel_norm: ``"l2"``, or ``"l1"`` of pixels.
        lpips_stages: in which pictures LPIPS is minimised.
        lpips_frames: so many frames of what a process has of a batch are judged by LPIPS; 0 is all.
        draft_pixels: ``"own"`` judges the last draft step's own picture (equation 12),
            ``"updated"`` one step's behind the frequency-domain update of the base's.
        discriminator: channels of its first level.
        gradient_checkpointing: compute every block again in the backward pass.
        start: weights to begin with: a directory with Wan2.1's transformer and VAE and the
            prompt's embedding (and a PS-SR base to go on with), or a bundle.
        negative_prompt: the embedding that guidance leads away from.
        lpips: file or directory of LPIPS-VGG's weights.
        repeat: train on so many samples, over and over; 0 makes new ones all the time.
    """

    size: str = "wan2.1-1.3b"
    seed: int = 0
    steps: Steps = field(default_factory=Steps)
    weights: Weights = field(default_factory=Weights)
    clips: ClipShape = field(default_factory=ClipShape)
    batch: int = 1
    lora_rank: int = 32
    regulariser_rank: int = 32
    learning_rate: float = 5e-5
    critic_rate: float = 5e-5
    beta2: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup: int = 100
    decay: Literal["constant", "cosine"] = "constant"
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "bf16"
    vsd_timesteps: tuple[int, int] = (20, 980)
    guidance: float = 1.0
    crop_latents: int = 20
    crop_frames: int = 9
    pixel_norm: Literal["l2", "l1"] = "l2"
    lpips_stages: Literal["pixel and draft", "draft"] = "pixel and draft"
    lpips_frames: int = 0
    draft_pixels: Literal["own", "updated"] = "own"
    discriminator: int = 64
    gradient_checkpointing: bool = True
    start: str | None = None
    negative_prompt: str | None = None
    lpips: str | None = None
    repeat: int = 0

    def __post_init__(self) -> None:
        clips, low_high = self.clips, self.vsd_timesteps
        for valid, message in (
            (self.size in SIZES, f"size must be one of {', '.join(SIZES)}; got {self.size!r}"),
            (
                clips.degradation in DEGRADATIONS,
                f"degradation must be one of {', '.join(DEGRADATIONS)}; got {clips.degradation!r}",
            ),
            (
                all(
                    side >= 16 and side % 16 == 0 and side % clips.scale == 0
                    for side in (clips.size, clips.width)
                ),
                f"sides of clips must be multiples of 16 and of the scale {clips.scale}; got "
                f"{clips.size} and {clips.width}",
            ),
            (self.batch >= 1, f"batch must be at least 1; got {self.batch}"),
            (
                clips.frames >= 1 and self._whole_latents(),
                f"clips of {self.size} must have 1 frame, or 4 n + 1 for a causal codec; got "
                f"{clips.frames}",
            ),
            (0 <= self.ema < 1, f"ema must lie in [0, 1); got {self.ema}"),
            (
                0 < low_high[0] < low_high[1] <= 1000,
                f"vsd_timesteps must rise within 1 to 1000; got {low_high}",
            ),
            (min(asdict(self.steps).values()) >= 0, "steps must not be negative"),
            (min(asdict(self.weights).values()) >= 0, "weights of losses must not be negative"),
        ):
            if not valid:
                raise UsageError(message)

    def _whole_latents(self) -> bool:
        codec = SIZES[self.size].codec if self.size in SIZES else CodecSize()
        return isinstance(codec, CodecSize) or self.clips.frames % codec.temporal_factor == 1

    def steps_of(self, stage: str) -> int:
        """Length of a stage."""
        return int(getattr(self.steps, stage))


def default_recipe(size: str) -> Recipe:
    """The paper's recipe for the full size; for ``nano`` what made the embedded one.

    That differs where two CPU cores and a million parameters do: the base is whole and trained
    with the codec, on pixels alone; only the draft, which is for that, is made sharp by LPIPS.

    Raises:
        UsageError: no such size.
    """
    if size not in SIZES:
        raise UsageError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    if isinstance(SIZES[size].codec, CodecSize):
        return Recipe(
            size=size,
            steps=Steps(codec=3_000, base=0, pixel=3_000, draft=500),
            weights=Weights(
                l2=0.02,
                vsd=0.0,
                adversarial=0.0,
                lpips=2.5,
                temporal=0.25,
                known=0.6,
            ),
            clips=ClipShape(frames=4, size=128, degradation="mixed", margin=4),
            batch=4,
            lora_rank=0,
            learning_rate=5e-4,
            critic_rate=1e-4,
            beta2=0.99,
            weight_decay=0.0,
            clip_norm=0.5,
            warmup=50,
            decay="cosine",
            crop_latents=16,
            crop_frames=4,
            pixel_norm="l1",
            lpips_stages="draft",
            lpips_frames=4,
            draft_pixels="updated",
            gradient_checkpointing=False,
        )
    return Recipe(
        size=size,
        clips=ClipShape(frames=33, size=720, degradation="realesrgan_released", wide=1280),
    )


def smoke_recipe(size: str, lpips: str | None = None) -> Recipe:
    """Every stage in a minute: a few small clips, over and over.

    Also those that the recipe of the size leaves out. A teacher of 40 steps knows little: the
    losses that follow it and the discriminator weigh less than in earnest, or the base would not
    get nearer to the truth. Pixels weigh more, because so few steps hardly move the last stages
    otherwise.
    """
    base = default_recipe(size)
    lpips_weight = base.weights.lpips if lpips else 0.0
    return replace(
        base,
        steps=Steps(codec=40, teacher=40, base=40, pixel=30, draft=60),
        weights=Weights(vsd=0.02, adversarial=0.002, pixel=2.0, lpips=lpips_weight),
        clips=ClipShape(
            frames=2 if base.clips.frames % 4 == 0 else 5, size=64, degradation="light"
        ),
        batch=2,
        learning_rate=1e-3,
        critic_rate=1e-3,
        warmup=4,
        decay="constant",
        ema=0.5,
        precision="fp32",
        crop_latents=8,
        crop_frames=2,
        discriminator=8,
        lpips=lpips,
        repeat=4,
    )


def to_json(recipe: Recipe) -> str:
    """The recipe as JSON text."""
    return json.dumps(asdict(recipe), indent=1) + "\n"


def from_json(text: str, start: Recipe, where: str) -> Recipe:
    """A recipe from JSON text; what is not in it is that of ``start``.

    Raises:
        UsageError: not JSON, or a name or value that a recipe does not have; ``where`` names it.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    return _filled(start, content, where)


def _filled(start: Value, content: Any, where: str) -> Value:
    assert is_dataclass(start) and not isinstance(start, type)
    if not isinstance(content, dict):
        raise UsageError(f"{where}: needed a table of settings, got {content!r}")
    hints = get_type_hints(type(start))
    known = {field.name for field in fields(start)}
    changes: dict[str, Any] = {}
    for name, value in content.items():
        if name not in known:
            raise UsageError(f"{where}: no setting {name!r}; known are: {', '.join(sorted(known))}")
        old = getattr(start, name)
        if is_dataclass(old):
            changes[name] = _filled(old, value, f"{where}: {name}")
        else:
            changes[name] = _checked(value, hints[name], f"{where}: {name}")
    return replace(start, **changes)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """A plain value of the type that is asked for; lists become tuples."""
    choices = get_args(hint)
    if isinstance(value, list):
        value = tuple(value)
        fits = tuple(map(type, value)) == choices
    elif choices and all(isinstance(choice, str) for choice in choices):  # Literal
        fits = value in choices
    elif choices:  # something, or none
        fits = isinstance(value, choices)
    else:
        fits = type(value) is hint or (hint is float and type(value) is int)
        value = float(value) if fits and hint is float else value
    if not fits:
        raise UsageError(f"{where}: got {value!r}; needed {getattr(hint, '__name__', hint)}")
    return value


def load_recipe(path: Path, start: Recipe) -> Recipe:
    """Read a recipe from a file; what is not in it is that of ``start``.

    Raises:
        UsageError: the file cannot be read or makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a recipe: {error}") from None
    return from_json(text, start, str(path))
