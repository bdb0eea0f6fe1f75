"""How far inputs are trusted: the options that ``psssr upscale`` and ``psssr probe`` share."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from psssr_fast.video import Limits

_PANEL = "Untrusted inputs"
_LARGEST = 2**31 - 1

Sandbox = Annotated[
    bool,
    typer.Option(
        "--sandbox",
        help="Decode in a process without network, that can write nothing and is held to 4 GiB and "
        "30 s a frame.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        max=_LARGEST,
        metavar="NUMBER",
        help="Refuse inputs with larger frames.",
        rich_help_panel=_PANEL,
        show_default="8192 x 8192",
    ),
]
MaxFrames = Annotated[
    int | None,
    typer.Option(
        "--max-frames",
        min=1,
        max=_LARGEST,
        metavar="NUMBER",
        help="Refuse inputs with more frames.",
        rich_help_panel=_PANEL,
        show_default="no limit",
    ),
]
MaxDuration = Annotated[
    float | None,
    typer.Option(
        "--max-duration",
        min=0.001,
        max=_LARGEST,
        metavar="NUMBER",
        help="Refuse inputs that last more seconds.",
        rich_help_panel=_PANEL,
        show_default="no limit",
    ),
]


@dataclass(frozen=True)
class Guard:
    """What an input may be, and where it is decoded; ``None`` is the default limit."""

    sandbox: bool = False
    max_pixels: int | None = None
    max_frames: int | None = None
    max_duration: float | None = None

    @property
    def limits(self) -> "Limits":
        """As the readers take them."""
        from psssr_fast.video import DEFAULT_LIMITS, Limits

        pixels = DEFAULT_LIMITS.max_pixels if self.max_pixels is None else self.max_pixels
        return Limits(pixels, max_frames=self.max_frames, max_duration_s=self.max_duration)


DEFAULT_GUARD = Guard()


def make_guard(
    sandbox: Sandbox = False,
    max_pixels: MaxPixels = None,
    max_frames: MaxFrames = None,
    max_duration: MaxDuration = None,
) -> Guard:
    """What the options say."""
    return Guard(sandbox, max_pixels, max_frames, max_duration)


def with_options(
    name: str, make: Callable[..., Any]
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the options that are ``make``'s parameters, in place of its own ``name``.

    The command gets what ``make`` makes of them.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        added = inspect.signature(make).parameters
        parameters: dict[str, inspect.Parameter] = {}
        for key, item in inspect.signature(command).parameters.items():
            parameters.update(added if key == name else {key: item})

        @functools.wraps(command)
        def run(**values: Any) -> int:
            made = make(**{option: values.pop(option) for option in added})
            return command(**values, **{name: made})

        vars(run)["__signature__"] = inspect.Signature(list(parameters.values()))
        run.__annotations__ = {key: item.annotation for key, item in parameters.items()}
        return run

    return decorate


guarded = with_options("guard", make_guard)
