import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psssr_fast.errors import UsageError
from psssr_fast.native import native_available
from psssr_fast.ops.pixel_format import (
    pack_frames,
    pack_frames_ref,
    unpack_frames,
    unpack_frames_ref,
)

CSRC = Path(__file__).parents[1] / "csrc"
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 17, 33), (1, 64, 127), (2, 90, 160)]  # frames, height, width
EMPTY = [(0, 4, 5), (2, 0, 5), (2, 4, 0)]


def random_frames(shape, device):
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=device)


def half_levels(device):
    """Every k + 1/2 and its two neighbours, as pictures [1, 3, 1, 255], level k + 1/2 being exact.

    (x + 1) * 127.5 must be a half in fp32, which not every k has an x for.
    """
    halves = torch.arange(255, dtype=torch.float64) + 0.5
    x = (halves / 127.5 - 1).float()
    below, above = torch.nextafter(x, x - 1), torch.nextafter(x, x + 1)
    return torch.stack([below, x, above])[None, :, None].to(device)


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_unpack_has_the_bits_of_the_reference(shape, device):
    frames = random_frames(shape, device)
    picture = unpack_frames(frames)
    assert picture.is_contiguous() and picture.dtype == torch.float32
    torch.testing.assert_close(picture, unpack_frames_ref(frames), rtol=0, atol=0)


@pytest.mark.parametrize("truncate", [False, True], ids=["round", "truncate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_pack_has_the_bits_of_the_reference(shape, dtype, truncate, device):
    count, height, width = shape
    picture = torch.randn(count, 3, height, width, device=device).to(dtype)  # a third is clamped
    frames = pack_frames(picture, truncate)
    assert frames.is_contiguous() and frames.shape == (count, height, width, 3)
    torch.testing.assert_close(frames, pack_frames_ref(picture, truncate), rtol=0, atol=0)


def test_every_byte_unpacks_to_the_nearest_fp32_of_its_definition(device):
    levels = torch.arange(256, dtype=torch.uint8, device=device)
    picture = unpack_frames(levels[None, None, :, None].expand(1, 1, 256, 3))
    exact = levels.double() * 2 / 255 - 1
    assert (picture.double() - exact).abs().max() <= 2**-24  # half a unit in the last place at 1
    assert picture.min() == -1 and picture.max() == 1


def test_every_byte_survives_a_round_trip(device):
    levels = torch.arange(256, dtype=torch.uint8, device=device)
    frames = levels[None, None, :, None].expand(1, 1, 256, 3)
    assert torch.equal(pack_frames(unpack_frames(frames)), frames)
    assert torch.equal(pack_frames_ref(unpack_frames_ref(frames)), frames)


@pytest.mark.parametrize("pack", [pack_frames, pack_frames_ref], ids=["op", "reference"])
def test_halves_round_to_even(pack, device):
    picture = half_levels(device)
    levels = (picture + 1) * 127.5
    exact_half = levels.frac() == 0.5
    assert exact_half.sum() >= 100  # the case is really met
    even = pack(picture).permute(0, 3, 1, 2)[exact_half] % 2
    assert not even.any()


@pytest.mark.parametrize("truncate", [False, True], ids=["round", "truncate"])
def test_pack_around_every_half_has_the_bits_of_the_reference(truncate, device):
    picture = half_levels(device)
    assert torch.equal(pack_frames(picture, truncate), pack_frames_ref(picture, truncate))


@pytest.mark.parametrize("pack", [pack_frames, pack_frames_ref], ids=["op", "reference"])
@pytest.mark.parametrize("truncate", [False, True], ids=["round", "truncate"])
def test_values_that_are_no_colour_are_clamped(pack, truncate, device):
    inf, nan = float("inf"), float("nan")
    values = [nan, -nan, -inf, -3e38, -1.0001, -1.0, 1.0, 1.0001, 3e38, inf]
    picture = torch.tensor(values, device=device)[None, None, None].expand(1, 3, 1, 10)
    expected = [0] * 6 + [255] * 4
    assert pack(picture, truncate)[0, 0].tolist() == [[level] * 3 for level in expected]


def test_truncation_is_what_the_release_does(device):
    picture = torch.rand(2, 3, 9, 11, device=device) * 2 - 1
    release = ((picture.permute(0, 2, 3, 1) + 1) * 127.5).clip(0, 255).cpu().numpy().astype("uint8")
    assert (pack_frames(picture, truncate=True).cpu().numpy() == release).all()


def test_inputs_need_not_be_contiguous(device):
    frames = random_frames((4, 12, 14), device)
    for view in (frames[::2, 1::3, ::2], frames.transpose(1, 2), frames.flip(3)):
        assert torch.equal(unpack_frames(view), unpack_frames(view.contiguous()))
    picture = torch.randn(4, 3, 12, 14, device=device)
    for view in (picture[::2, :, 1::3, ::2], picture.mT, picture.permute(1, 0, 2, 3)[:, :3].mT):
        view = view if view.shape[1] == 3 else view.transpose(0, 1)
        assert torch.equal(pack_frames(view), pack_frames(view.contiguous()))


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 70)),
    seed=st.integers(0, 2**31),
    truncate=st.booleans(),
)
def test_any_shape_has_the_bits_of_the_reference(shape, seed, truncate):
    count, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(count, 3, height, width, generator=generator)
    frames = pack_frames(picture, truncate)
    assert torch.equal(frames, pack_frames_ref(picture, truncate))
    assert torch.equal(unpack_frames(frames), unpack_frames_ref(frames))


def test_work_split_between_threads_covers_every_row(device):
    frames = random_frames((3, 180, 320), device)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        picture = unpack_frames(frames)
        assert torch.equal(picture, unpack_frames_ref(frames))
        assert torch.equal(pack_frames(picture), frames)
    finally:
        torch.set_num_threads(threads)


def test_ops_are_registered_correctly(device):
    torch.library.opcheck(unpack_frames, (random_frames((2, 4, 6), device).transpose(1, 2),))
    torch.library.opcheck(pack_frames, (torch.randn(2, 3, 4, 6, device=device).mT, True))


@pytest.mark.parametrize("unpack", [unpack_frames, unpack_frames_ref], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("frames", "got"),
    [
        (torch.zeros(2, 4, 6, 3), r"torch\.float32 \[2, 4, 6, 3\]"),
        (torch.zeros(2, 3, 4, 6, dtype=torch.uint8), r"torch\.uint8 \[2, 3, 4, 6\]"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8), r"torch\.uint8 \[4, 6, 3\]"),
    ],
    ids=["dtype", "channels", "dimensions"],
)
def test_unpack_refuses_other_inputs_in_one_line(unpack, frames, got):
    with pytest.raises(UsageError, match=rf"^unpack_frames: .*uint8 \[T, H, W, 3\].*{got}.*$"):
        unpack(frames)


@pytest.mark.parametrize("pack", [pack_frames, pack_frames_ref], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (torch.zeros(2, 3, 4, 6, dtype=torch.uint8), r"torch\.uint8 \[2, 3, 4, 6\]"),
        (torch.zeros(2, 4, 6, 3), r"torch\.float32 \[2, 4, 6, 3\]"),
        (torch.zeros(3, 4, 6), r"torch\.float32 \[3, 4, 6\]"),
    ],
    ids=["dtype", "channels", "dimensions"],
)
def test_pack_refuses_other_inputs_in_one_line(pack, picture, got):
    with pytest.raises(UsageError, match=rf"^pack_frames: .*\[T, 3, H, W\].*{got}.*$"):
        pack(picture)


FAR_ROWS = """
#include <sys/mman.h>
#include <cstdio>
#include "pixel_format.h"

// 12,000 frames of 320x200 are 2.3e9 elements. The pages are touched only where rows are written.
constexpr std::int64_t kFrames = 12000, kHeight = 200, kWidth = 320;
constexpr std::int64_t kElements = kFrames * kHeight * kWidth * 3, kRows = kFrames * kHeight;

template <typename T>
T* reserve() {
  void* address = mmap(nullptr, kElements * sizeof(T), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return address == MAP_FAILED ? nullptr : static_cast<T*>(address);
}

int main() {
  static_assert(kElements > (std::int64_t{1} << 31));
  std::uint8_t* frames = reserve<std::uint8_t>();
  float* picture = reserve<float>();
  if (frames == nullptr || picture == nullptr) return 2;
  frames[kElements - 1] = 255;
  psssr::unpack_frames(frames, picture, kHeight, kWidth, kRows - 1, kRows);
  if (picture[kElements - 1] != 1.0f || picture[kElements - 2] != -1.0f) return 3;
  frames[kElements - 1] = 7;
  psssr::pack_frames(picture, frames, kHeight, kWidth, false, kRows - 1, kRows);
  return frames[kElements - 1] == 255 ? 0 : 4;
}
"""


@pytest.mark.skipif(not native_available(), reason="the kernels are not compiled here")
def test_clips_of_more_than_two_to_the_31_elements_are_addressed(tmp_path):
    source, program = tmp_path / "far_rows.cpp", tmp_path / "far_rows"
    source.write_text(FAR_ROWS)
    sources = [source, CSRC / "pixel_format.cpp"]
    subprocess.run(["c++", "-std=c++17", "-O1", f"-I{CSRC}", *sources, "-o", program], check=True)
    assert subprocess.run([program]).returncode == 0
