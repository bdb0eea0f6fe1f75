"""Which way is the fastest for each convolution of the engine: measured once, then remembered.

The ways: our kernel with each tile that arithmetic leaves in question, and a library's convolution
(cuDNN's) of copied frames, which is the reference of our operator.
"""

import logging
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from psssr_fast.ops.causal_conv3d import causal_conv3d_by_library, pack_conv_weight
from psssr_fast.ops.upsample_conv2d import pack_upsample_weight, upsample_conv2d_by_library
from psssr_fast.runtime.choices import recall

if TYPE_CHECKING:
    from psssr_fast.kernels._conv_tiles import Problem, Tile

LIBRARY = "library"
MARGIN = 1.03  # another way than the usual has to be so many times faster
ROUNDS = 10
Call = Callable[[], object]
Timer = Callable[[Call], float]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Convolution:
    """One convolution of the engine at one size.

    Attributes:
        inner, outer: channels.
        kernel: taps in time, height and width; ``None`` for one that doubles the picture.
        frames: of its output in one call.
        height, width: of its input.
    """

    inner: int
    outer: int
    kernel: tuple[int, int, int] | None
    frames: int
    height: int
    width: int
    dtype: torch.dtype

    def problem(self, arch: int) -> "Problem":
        """As ``kernels/_conv_tiles.py`` sees it."""
        from psssr_fast.kernels._conv_tiles import Problem

        kernel, scale = (self.kernel, 1) if self.kernel else ((1, 2, 2), 2)
        sizes = self.height, self.width, scale
        return Problem(self.inner, self.outer, kernel, *sizes, self.dtype, arch)


@dataclass(frozen=True)
class Choice:
    """What was found for one question.

    Attributes:
        question: the convolution.
        answer: the way to take: a tile, or ``"library"``.
        seconds: that it takes.
        usual: seconds of the way taken without a measurement.
        ways: how many were timed.
    """

    question: str
    answer: str
    seconds: float
    usual: float
    ways: int


def question(problem: "Problem") -> str:
    """Under which an answer is remembered."""
    taps = "x".join(map(str, problem.kernel))
    name = str(problem.dtype).removeprefix("torch.")
    size = f"{problem.height}x{problem.width}"
    aligned = "" if problem.aligned else ", not aligned"
    doubled = ", doubled" if problem.scale > 1 else ""
    return f"conv {problem.cin} to {problem.cout}, {taps} at {size}{doubled}, {name}{aligned}"


def convolutions(calls: Iterable[Hashable]) -> list[Convolution]:
    """Those among the calls of our operators that a tally noted, one for each problem.

    Of calls that differ in the number of frames the longest counts.
    """
    found: dict[Convolution, int] = {}
    for name, (arguments, _) in cast(Iterable[tuple[str, Any]], calls):
        if name not in ("psssr_fast::causal_conv3d", "psssr_fast::upsample_conv2d"):
            continue
        (x, _, dtype), (weight, *_) = arguments[:2]
        kernel, frames = (weight[2:], arguments[5]) if len(weight) == 5 else (None, x[2])
        one = Convolution(x[1], weight[0], kernel, 0, x[3], x[4], dtype)
        found[one] = max(found.get(one, 0), frames)
    return sorted((replace(one, frames=frames) for one, frames in found.items()), key=str)


def ways(one: Convolution, arch: int, device: torch.device) -> Iterator[tuple[str, Call]]:
    """Name and call of every way to compute a convolution, the usual one first."""
    from psssr_fast.kernels._conv_tiles import candidate_tiles
    from psssr_fast.kernels.causal_conv3d import causal_conv3d_triton
    from psssr_fast.kernels.upsample_conv2d import upsample_conv2d_triton

    tiles = candidate_tiles(one.problem(arch))
    random = partial(torch.randn, dtype=one.dtype, device=device)
    bias = random(one.outer)
    if one.kernel is None:
        x = pack_conv_weight(random(1, one.inner, one.frames, one.height, one.width))
        weight = random(one.outer, one.inner, 3, 3) / (9 * one.inner) ** 0.5
        phases = pack_upsample_weight(weight)
        for tile in tiles:
            yield repr(tile), partial(upsample_conv2d_triton, x, phases, bias, tile)
        yield LIBRARY, partial(upsample_conv2d_by_library, x, weight, bias)
        return
    past = one.kernel[0] - 1
    x = pack_conv_weight(random(1, one.inner, one.frames + past, one.height, one.width))
    fan = one.inner * one.kernel[0] * one.kernel[1] * one.kernel[2]
    packed = pack_conv_weight(random(one.outer, one.inner, *one.kernel) / fan**0.5)
    rest = None, past, one.frames, past
    for tile in tiles:
        yield repr(tile), partial(causal_conv3d_triton, x, packed, bias, *rest, tile)
    yield LIBRARY, partial(causal_conv3d_by_library, x, packed, bias, *rest)


def choose(one: Convolution, arch: int, device: torch.device, timer: Timer) -> Choice:
    """Time every way and take the fastest, unless the usual one is nearly as fast.

    A way that cannot run at all (a tile that needs more of the GPU than there is) is left out.
    """
    from triton.runtime.errors import TritonError

    spent: dict[str, float] = {}
    usual = None
    for name, call in ways(one, arch, device):
        usual = usual or name
        try:
            spent[name] = timer(call)
        except (RuntimeError, TritonError) as error:
            reason = " ".join(str(error).split())[:200]
            logger.info("%s: %s does not run: %s", question(one.problem(arch)), name, reason)
    assert usual is not None
    if not spent:
        raise RuntimeError(f"no way to compute {one} runs on {device}")
    fastest = min(spent, key=spent.__getitem__)
    if usual in spent and spent[usual] <= MARGIN * spent[fastest]:
        fastest = usual
    own = spent.get(usual, float("inf"))
    return Choice(question(one.problem(arch)), fastest, spent[fastest], own, len(spent))


class Remembered:
    """Chooses as was found on this machine, and the usual where nothing was.

    Args:
        answers: by their questions.
    """

    def __init__(self, answers: Mapping[str, str]) -> None:
        self._answers = answers

    def __call__(self, problem: "Problem", tiles: "list[Tile]") -> "Tile | None":
        """One of ``tiles``, or ``None`` for a library's convolution."""
        answer = self._answers.get(question(problem))
        if answer == LIBRARY:
            return None
        return next((tile for tile in tiles if repr(tile) == answer), tiles[0])


def use(answers: Mapping[str, str]) -> None:
    """Let the kernels choose by these answers from now on, in this process."""
    from psssr_fast.kernels._conv_tiles import decide_by

    decide_by(Remembered(answers))


def use_remembered(device: torch.device) -> None:
    """Let the kernels choose by what ``psssr warmup`` found on this machine, if it ran."""
    answers = recall(device)
    if answers:
        use(answers)


def device_seconds(call: Call) -> float:
    """Median by the GPU's own clock, after three runs that compile and warm up."""
    for _ in range(3):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(ROUNDS)]
    for begin, end in pairs:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3
