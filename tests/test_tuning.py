"""The way to compute each convolution is chosen by time; the clock here is made up."""

from dataclasses import replace

import pytest
import torch

from psssr_fast.benchmark import Workload
from psssr_fast.kernels import _conv_tiles
from psssr_fast.kernels._conv_tiles import Problem, candidate_tiles, choose_tile, library_is_faster
from psssr_fast.kernels.causal_conv3d import better_by_library, causal_conv3d_triton
from psssr_fast.kernels.upsample_conv2d import better_by_library as doubling_better_by_library
from psssr_fast.models.sizes import WAN_1_3B
from psssr_fast.ops.causal_conv3d import causal_conv3d_ref, pack_conv_weight
from psssr_fast.runtime import tuning
from psssr_fast.runtime.tuning import LIBRARY, Choice, Convolution, choose, question, use
from psssr_fast.testing import assert_as_accurate
from psssr_fast.warmup import window_convolutions

CPU = torch.device("cpu")
ARCH = 90
SMALL = Convolution(16, 24, (3, 3, 3), 2, 4, 6, torch.bfloat16)
DOUBLING = replace(SMALL, kernel=None)


@pytest.fixture(autouse=True)
def undecided():
    _conv_tiles.decide_by(None)
    yield
    _conv_tiles.decide_by(None)


def names(one=SMALL):
    return [name for name, _ in tuning.ways(one, ARCH, CPU)]


def clock(seconds):
    """A timer that runs nothing; the ways come in the order of :func:`names`."""
    left = iter(seconds)

    def timer(call):
        spent = next(left)
        if isinstance(spent, Exception):
            raise spent
        return spent

    return timer


def test_ways_are_the_candidates_and_the_library():
    tiles = candidate_tiles(SMALL.problem(ARCH))
    assert names() == [*map(repr, tiles), LIBRARY]
    assert len(names()) >= 3


@pytest.mark.parametrize(
    ("spent", "index"),
    [((3, 2, 1), -1), ((1, 2, 3), 0), ((1, 0.98, 2), 0), ((1, 0.9, 2), 1)],
)
def test_the_fastest_is_chosen_unless_the_usual_is_nearly_as_fast(spent, index):
    first, second, library = spent
    times = [first, second, *[9.0] * (len(names()) - 3), library]
    found = choose(SMALL, ARCH, CPU, clock(times))
    name = "conv 16 to 24, 3x3x3 at 4x6, bfloat16"
    assert found == Choice(name, names()[index], times[index], first, len(times))


def test_a_way_that_does_not_run_is_left_out():
    rest = [5.0] * (len(names()) - 2)
    found = choose(SMALL, ARCH, CPU, clock([RuntimeError("out of resources"), 4.0, *rest]))
    assert (found.answer, found.usual, found.ways) == (names()[1], float("inf"), len(names()) - 1)
    with pytest.raises(RuntimeError, match="no way to compute"):
        choose(SMALL, ARCH, CPU, clock([RuntimeError("no")] * len(names())))


def test_kernels_take_what_was_chosen_and_the_usual_for_the_rest():
    problem, other = SMALL.problem(ARCH), Problem(16, 16, (3, 3, 3), 4, 6, 1, torch.bfloat16, ARCH)
    tiles = candidate_tiles(problem)
    use({question(problem): repr(tiles[1])})
    assert choose_tile(problem) == tiles[1] and not library_is_faster(problem)
    assert choose_tile(other) == candidate_tiles(other)[0]
    use({question(problem): LIBRARY})
    assert library_is_faster(problem) and not library_is_faster(other)
    use({question(problem): "Tile of another version"})
    assert choose_tile(problem) == tiles[0] and not library_is_faster(problem)


def full_size(shape=(29, 720, 1280)):
    workload = Workload("wan2.1-1.3b", *shape, CPU, torch.bfloat16)
    return window_convolutions(WAN_1_3B, workload)


def test_the_convolutions_of_a_window_are_all_there_and_each_has_a_question():
    found = full_size()
    assert Convolution(96, 96, (3, 3, 3), 4, 720, 1280, torch.bfloat16) in found
    assert Convolution(384, 384, (3, 3, 3), 1, 90, 160, torch.bfloat16) in found
    assert Convolution(192, 96, None, 4, 360, 640, torch.bfloat16) in found
    assert 15 <= len(found) <= 40
    problems = {one.problem(ARCH) for one in found}
    assert len(problems) == len({question(problem) for problem in problems}) == len(found)
    for problem in problems:
        tiles = candidate_tiles(problem)
        assert len({repr(tile) for tile in tiles}) == len(tiles)
    assert not set(full_size((29, 352, 640))) & {one for one in found if one.height > 352}


@pytest.mark.parametrize("one", [SMALL, DOUBLING], ids=["conv", "doubling"])
def test_every_way_computes_the_convolution(one, device):
    one = replace(one, dtype=torch.float32)  # which Triton's interpreter can multiply
    shapes = {tuple(call().shape) for _, call in tuning.ways(one, ARCH, device)}
    scale = 1 if one.kernel else 2
    assert shapes == {(1, 24, 2, scale * 4, scale * 6)}


def test_ops_ask_before_they_launch(device):
    x = pack_conv_weight(torch.randn(1, 16, 4, 4, 6, device=device))
    weight = pack_conv_weight(torch.randn(24, 16, 3, 3, 3, device=device))
    bias, square = torch.randn(24, device=device), weight[:, :, 0]
    assert not better_by_library(x, weight) and not doubling_better_by_library(x, square)
    use({question(replace(one, dtype=x.dtype).problem(ARCH)): LIBRARY for one in (SMALL, DOUBLING)})
    assert better_by_library(x, weight) and doubling_better_by_library(x, square)
    arguments = x, weight, bias, None, 2, 2, 2  # the launcher itself still has a tile
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    eager, exact = causal_conv3d_ref(*arguments), causal_conv3d_ref(*wide)
    assert_as_accurate(causal_conv3d_triton(*arguments), eager, exact)
