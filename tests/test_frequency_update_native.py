"""The compiled frequency update where its tiles meet, on bytes, far out, and without vectors."""

import ctypes
import mmap
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from psssr_fast.config import FrequencyUpdate
from psssr_fast.native import native_available
from psssr_fast.ops.frequency_update import frequency_update_detail_ref, separable_low_pass
from psssr_fast.testing import assert_as_accurate

CSRC = Path(__file__).parents[1] / "csrc"
LERP = FrequencyUpdate()
LITERAL = FrequencyUpdate(strength=0.6, alpha_mode="literal", border=2)
# A tile has at most 180 lines and 256 columns, done in blocks of 4 and 16.
SIZES = [(1, 1), (3, 530), (370, 17), (185, 260), (8, 256), (181, 257)]
WRAPPER = """
#include "frequency_update.h"

extern "C" void run(const float* consistent, const float* sharp, float* fused, float* detail,
                    const float* columns, const float* rows, long count, long height, long width,
                    long begin) {
  const psssr::FrequencyUpdate settings{columns, rows, 1.0f, false, 0, 1e-6f};
  const psssr::FrequencyUpdateFrames<float> frames{consistent, sharp, fused, detail,
                                                   count, height, width};
  const long tiles = psssr::frequency_update_tiles(count, height, width);
  psssr::frequency_update(frames, settings, begin, tiles);
}
"""

needs_extension = pytest.mark.skipif(not native_available(), reason="psssr_fast._C is not built")


def taps(settings: FrequencyUpdate) -> tuple[Tensor, Tensor]:
    columns, rows = separable_low_pass(settings.cutoff, settings.order)
    return columns.float(), rows.float()


def run(consistent: Tensor, sharp: Tensor, settings: FrequencyUpdate) -> tuple[Tensor, Tensor]:
    from psssr_fast import _C

    literal = settings.alpha_mode == "literal"
    rest = (settings.strength, literal, settings.border, settings.eps, True)
    return _C.frequency_update(consistent, sharp, *taps(settings), *rest)


def check(actual: tuple[Tensor, Tensor], pictures: Tensor, settings: FrequencyUpdate) -> None:
    eager = frequency_update_detail_ref(*pictures, settings)
    exact = frequency_update_detail_ref(*pictures.double(), settings)
    assert_as_accurate(actual[0], eager[0], exact[0])
    # A difference of lumas is known to a rounding of white, however small it is.
    assert_as_accurate(1 + actual[1], 1 + eager[1], 1 + exact[1])


@needs_extension
@pytest.mark.parametrize("settings", [LERP, LITERAL], ids=["lerp", "literal"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_meet_without_a_seam(size, settings):
    pictures = torch.rand(2, 2, 3, *size)
    check(run(*pictures, settings), pictures, settings)


@needs_extension
@pytest.mark.parametrize("settings", [LERP, LITERAL], ids=["lerp", "literal"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bytes_are_rounded_once(size, settings):
    levels = torch.randint(0, 256, (2, 2, 3, *size), dtype=torch.uint8)
    fused, detail = run(*levels, settings)
    eager = frequency_update_detail_ref(*levels / 255, settings)
    exact = frequency_update_detail_ref(*levels.double() / 255, settings)
    assert (fused.dtype, detail.dtype) == (torch.uint8, torch.float32)
    error = (eager[0] - exact[0]).abs().max() + torch.finfo(torch.float32).eps
    assert (fused - 255 * exact[0]).abs().max() <= 0.5 + 2 * 255 * error
    assert_as_accurate(1 + detail, 1 + eager[1], 1 + exact[1])


@needs_extension
def test_bytes_of_a_picture_with_itself_stay():
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 20, 256).contiguous()
    fused, detail = run(levels, levels, LERP)
    assert torch.equal(fused, levels)
    assert detail.max() == 0


@needs_extension
@pytest.mark.parametrize("border", [0, 1, 4, 9, 30, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_border_changes_nothing_inside(dtype, border):
    pictures = (255 * torch.rand(2, 1, 3, 41, 300)).to(dtype)
    pictures = pictures if dtype == torch.uint8 else pictures / 255
    free, _ = run(*pictures, LERP)
    fused, detail = run(*pictures, replace(LERP, border=border))
    inside = torch.zeros(41, 300, dtype=torch.bool)
    inside[border : max(border, 41 - border), border : 300 - border] = True
    assert torch.equal(fused, torch.where(inside, free, pictures[0]))
    assert detail[:, ~inside].abs().sum() == 0


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_result_does_not_depend_on_threads(dtype):
    pictures = (255 * torch.rand(2, 3, 3, 200, 300)).to(dtype)  # 12 tiles, among 5 threads
    threads = torch.get_num_threads()
    results = []
    for count in (1, 5):
        torch.set_num_threads(count)
        results.append(run(*pictures, LERP))
    torch.set_num_threads(threads)
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone, together)


@needs_extension
def test_wrong_tensors_are_refused():
    floats, levels = torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="sharp must be a contiguous CPU tensor"):
        run(levels, floats, LERP)
    with pytest.raises(RuntimeError, match="consistent must be a contiguous CPU tensor"):
        run(floats.half(), floats.half(), LERP)


@pytest.fixture(scope="module")
def one_version(tmp_path_factory) -> Callable[..., None]:
    """The kernel as processors without AVX2 have it, from a given tile on; no border, no torch."""
    if not native_available():
        pytest.skip("the kernels are not compiled here")
    folder = tmp_path_factory.mktemp("frequency_update")
    source, library = folder / "wrapper.cpp", folder / "library.so"
    source.write_text(WRAPPER)
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-DPSSSR_ONE_VERSION", "-fPIC", "-shared"]
    sources = [source, CSRC / "frequency_update.cpp"]
    subprocess.run(["c++", *flags, f"-I{CSRC}", *sources, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).run

    def call(consistent: Tensor, sharp: Tensor, fused: Tensor, detail: Tensor, begin: int) -> None:
        tensors = (consistent, sharp, fused, detail, *taps(LERP))
        sizes = (len(fused), *fused.shape[2:], begin)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        function(*pointers, *map(ctypes.c_long, sizes))

    return call


def test_version_for_every_processor_is_as_accurate(one_version):
    pictures = torch.rand(2, 2, 3, 45, 277)
    fused, detail = torch.empty(2, 3, 45, 277), torch.empty(2, 45, 277)
    one_version(*pictures, fused, detail, 0)
    check((fused, detail), pictures, LERP)


def test_clips_of_more_than_two_to_the_31_elements_are_addressed(one_version):
    shape = (2**31 // (3 * 20 * 30) + 2, 3, 20, 30)  # a tile to a frame
    size = 4 * shape[0] * shape[1] * shape[2] * shape[3]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE: only the end is used
    consistent, sharp, fused, detail = (
        torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.float32) for _ in range(4)
    )
    consistent, sharp, fused = (x.view(shape) for x in (consistent, sharp, fused))
    detail = detail[: len(fused) * 600].view(-1, 20, 30)
    pictures = torch.rand(2, 1, 3, 20, 30)
    consistent[-1:], sharp[-1:] = pictures
    one_version(consistent, sharp, fused, detail, len(fused) - 1)
    check((fused[-1:].clone(), detail[-1:].clone()), pictures, LERP)
    assert fused[-2].abs().max() == 0
