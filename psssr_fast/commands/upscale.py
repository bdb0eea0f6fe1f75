"""``psssr upscale``."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import typer

from psssr_fast.commands import upscale_options as options
from psssr_fast.commands.batch import Batch, Existing, Reading, Result, Writing, exit_code
from psssr_fast.commands.guard import (
    MaxDuration,
    MaxFrames,
    MaxPixels,
    Sandbox,
    make_guard,
    with_options,
)
from psssr_fast.commands.plan import Target, plan_jobs
from psssr_fast.commands.progress import BarProgress, ProgressConsole, ProgressStyle, make_progress
from psssr_fast.commands.shell import (
    DebugOption,
    JsonOption,
    Shell,
    print_document,
    print_line,
    shortened,
)
from psssr_fast.commands.stopping import stoppable
from psssr_fast.config import FrequencyUpdate, Profile, Settings, Windows
from psssr_fast.errors import UsageError
from psssr_fast.runtime.planner import resized

if TYPE_CHECKING:
    from psssr_fast.upscaler import Upscaler
    from psssr_fast.video import EncoderSettings

_EXISTING = Existing()
_READING = Reading()
_DIGITS = 9  # of a number of pixels or frames
_ANY = Windows(2**30, 2**30, 2**30, overlap_frames=0, overlap_pixels=0)  # fits every change


@dataclass(frozen=True)
class PictureChanges:
    """What of a profile's settings the user changed; ``None`` is unchanged."""

    alpha: float | None
    fdu_filter: options.Filter | None
    window: str | None
    overlap: str | None
    scene_cuts: options.Detector | None = None

    def __post_init__(self) -> None:
        self.apply(Settings(windows=_ANY))  # refuse now what never fits

    def apply(self, settings: Settings) -> Settings:
        """The settings with the changes.

        Raises:
            UsageError: a value is malformed, or the result does not fit together.
        """
        update: FrequencyUpdate = settings.frequency_update
        if self.alpha is not None:
            update = replace(update, strength=self.alpha)
        if self.fdu_filter is not None:
            update = replace(update, filter=self.fdu_filter.value)
        scenes = settings.scenes
        if self.scene_cuts is not None:
            scenes = replace(scenes, detector=self.scene_cuts.value)
        windows = settings.windows
        frames, height, width = windows.frames, windows.height, windows.width
        if self.window is not None:
            frames, height, width = numbers("--window", self.window, "FRAMESxHEIGHTxWIDTH")
        if self.overlap is None:
            windows = resized(windows, frames, height, width)
        else:
            shared_frames, shared_pixels = numbers("--overlap", self.overlap, "FRAMESxPIXELS")
            windows = replace(
                windows,
                frames=frames,
                height=height,
                width=width,
                overlap_frames=shared_frames,
                overlap_pixels=shared_pixels,
            )
        return replace(settings, frequency_update=update, windows=windows, scenes=scenes)


def numbers(option: str, text: str, form: str) -> tuple[int, ...]:
    """The numbers of an option such as ``8x720x1280``; ``form`` says how many and what.

    Raises:
        UsageError: it is not of that form.
    """
    parts = text.split("x")
    if len(parts) != len(form.split("x")) or not all(
        part.isascii() and part.isdigit() and len(part) <= _DIGITS for part in parts
    ):
        raise UsageError(f"{option} must be {form}; got {shortened(text)!r}")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class MemoryPlan:
    """Whether jobs are planned first.

    Attributes:
        limit: GiB that windows are chosen for; ``None`` leaves them as they are.
        tell: called with every line of the plan of each job; ``None`` explains nothing.
    """

    limit: float | None = None
    tell: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def wrap(self, upscaler: "Upscaler", choice: "ModelChoice") -> "Upscaler":
        """The upscaler, or one that plans first."""
        if self.limit is None and self.tell is None:
            return upscaler
        from psssr_fast.commands.planned import PlannedUpscaler, Wishes

        wishes = Wishes(self.limit, fixed=choice.changes.window is not None)
        return PlannedUpscaler(upscaler, choice.source, wishes, self.tell, choice.offline)


def check_limit(gibibytes: float | None) -> None:
    """Raise UsageError unless ``--vram-limit`` is an amount of memory."""
    if gibibytes is not None and not 0 < gibibytes < float("inf"):
        raise UsageError(f"--vram-limit must be a positive number of GiB; got {gibibytes:g}")


@dataclass(frozen=True)
class EncoderChanges:
    """What of the encoder's defaults the user changed; ``None`` is unchanged."""

    codec: str | None
    crf: int | None
    preset: str | None
    pixel_format: str | None
    options: tuple[str, ...]

    def settings(self) -> "EncoderSettings":
        """The encoder's settings.

        Raises:
            UsageError: an option is not ``NAME=VALUE``.
        """
        from psssr_fast.video import EncoderSettings

        pairs = [option.partition("=") for option in self.options]
        for name, equals, _ in pairs:
            if not name or not equals:
                raise UsageError(f"--encoder-option must be NAME=VALUE; got {name + equals!r}")
        default = EncoderSettings()
        return EncoderSettings(
            codec=default.codec if self.codec is None else self.codec,
            crf=default.crf if self.crf is None else self.crf,
            preset=default.preset if self.preset is None else self.preset,
            pixel_format=default.pixel_format if self.pixel_format is None else self.pixel_format,
            options=tuple((name, value) for name, _, value in pairs),
        )


_AS_IT_IS = EncoderChanges(None, None, None, None, ())


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, where to run it, and what to change of its settings."""

    source: str
    profile: Profile
    device: str
    dtype: options.Dtype
    attention: str
    engine: str
    offline: bool
    changes: PictureChanges
    memory: MemoryPlan = MemoryPlan()
    deterministic: bool = False

    def load(self, unfinished: str | None = None) -> "Upscaler":
        """Load it.

        Args:
            unfinished: the dtype that an unfinished job computes in; it comes before what happens
                to be faster today.

        Raises:
            ModelError, UsageError: see :meth:`psssr_fast.upscaler.Upscaler.from_pretrained`.
        """
        import torch

        from psssr_fast.runtime.cpu import keep_freed_memory
        from psssr_fast.upscaler import Upscaler

        dtype = unfinished if self.dtype is options.Dtype.AUTO else str(self.dtype)
        upscaler = Upscaler.from_pretrained(
            self.source,
            device=self.device,
            dtype=None if dtype is None else getattr(torch, dtype),
            profile=self.profile,
            attention=self.attention,
            engine=self.engine,
            offline=self.offline,
            deterministic=self.deterministic,
        )
        if upscaler.networks.device.type == "cpu":
            keep_freed_memory()
        # Only now are the windows known that the model is made for.
        upscaler.settings = self.changes.apply(upscaler.settings)
        return self.memory.wrap(upscaler, self)


def make_reading(
    frame_rate: options.FrameRate = Fraction(25),
    allow_damaged: options.AllowDamaged = False,
    sandbox: Sandbox = False,
    max_pixels: MaxPixels = None,
    max_frames: MaxFrames = None,
    max_duration: MaxDuration = None,
) -> Reading:
    """How inputs are read, as the options say."""
    guard = make_guard(sandbox, max_pixels, max_frames, max_duration)
    return Reading(frame_rate, allow_damaged, guard)


def make_encoder(
    codec: options.Codec = None,
    crf: options.Crf = None,
    preset: options.Preset = None,
    pixel_format: options.PixelFormat = None,
    encoder_option: options.EncoderOption = None,
) -> EncoderChanges:
    """How outputs are compressed, as the options say."""
    return EncoderChanges(codec, crf, preset, pixel_format, tuple(encoder_option or ()))


def make_existing(
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
    restart: options.Restart = False,
    chunk_frames: options.ChunkFrames = None,
) -> Existing:
    """What becomes of what is there already, as the options say."""
    return Existing(overwrite, skip_existing, restart, chunk_frames)


@with_options("existing", make_existing)
@with_options("encoder", make_encoder)
@with_options("reading", make_reading)
def upscale(
    ctx: typer.Context,
    inputs: options.Inputs,
    output: options.Output = None,
    scale: options.Scale = None,
    height: options.Height = None,
    model: options.Model = "nano",
    profile: options.ProfileChoice = Profile.RELEASED,
    device: options.Device = "auto",
    dtype: options.DtypeChoice = options.Dtype.AUTO,
    attention: options.Attention = "auto",
    engine: options.Engine = "fused",
    offline: options.Offline = False,
    alpha: options.Alpha = None,
    fdu_filter: options.FilterChoice = None,
    window: options.Window = None,
    overlap: options.Overlap = None,
    scene_cuts: options.SceneCuts = None,
    vram_limit: options.VramLimit = None,
    deterministic: options.Deterministic = False,
    encoder: EncoderChanges = _AS_IT_IS,
    reading: Reading = _READING,
    existing: Existing = _EXISTING,
    progress: options.Progress = ProgressStyle.AUTO,
    explain: options.Explain = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Upscale videos, or folders of PNG frames.

    Sound, subtitles, timestamps and colours are carried over.
    """
    ctx.obj.result_is_printed = as_json
    console = make_progress(progress)
    changes = PictureChanges(alpha, fdu_filter, window, overlap, scene_cuts)
    memory = MemoryPlan(vram_limit, console.note if explain else None)
    choice = ModelChoice(
        model, profile, device, dtype, attention, engine, offline, changes, memory, deterministic
    )
    target = Target(scale, height)
    writing = Writing(target, encoder.settings(), existing, reading)
    return _print_results(_run(ctx.obj, inputs, output, choice, writing, console), as_json)


def _run(
    shell: Shell,
    inputs: list[str],
    output: str | None,
    choice: ModelChoice,
    writing: Writing,
    console: ProgressConsole,
) -> list[Result]:
    shell.console = console
    if not isinstance(console, BarProgress):  # downloads would draw theirs between our lines
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with stoppable():
        jobs = plan_jobs(inputs, output, writing.target)
        return Batch(writing, choice.load, shell, console).run(jobs)


def _print_results(results: list[Result], as_json: bool) -> int:
    """Print them; the exit code that they mean."""
    if as_json:
        print_document("upscale", {"results": [result.to_json() for result in results]})
        return exit_code(results)
    for result in results:
        if result.error is None:
            print_line(str(result))
    return exit_code(results)
