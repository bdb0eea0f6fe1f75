"""Windows cover everything, and blending their results shows no seam."""

import json
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psssr_fast.config import Windows
from psssr_fast.errors import UsageError
from psssr_fast.windows import (
    TemporalBlender,
    TileBlender,
    axis_weights,
    crop_clip,
    pad_clip,
    stream_windows,
    tiles,
    window_starts,
    window_weights,
)

GOLDEN = json.loads((Path(__file__).parent / "golden/golden.json").read_text())
FEATHERS = ["shared", "released"]
axes = st.integers(1, 40).flatmap(
    lambda size: st.tuples(st.integers(1, 150), st.just(size), st.integers(0, size - 1))
)


def numbers(key: str) -> list[int]:
    return [int(number) for number in key.split(",")]


def temporal(size: int, overlap: int, feather: str = "shared") -> Windows:
    return Windows(frames=size, overlap_frames=overlap, feather=feather)


def restored(clip, windows, network=lambda picture: picture):
    """Run ``network`` on every window in time, and blend."""
    blender = TemporalBlender(windows)
    frames = []
    for window in stream_windows(clip, windows):
        blender.push(window, network(torch.stack(window.items)))
        frames.extend(blender.pop_finished(window))
    return torch.stack(frames)


def tiled(clip, windows, network=lambda picture: picture):
    """Run ``network`` on every tile, and blend."""
    blender = TileBlender(clip.shape)
    for tile in tiles(clip.shape[2], clip.shape[3], windows):
        blender.add(tile, network(clip[:, :, tile.y, tile.x]))
    return blender.result()


# Where windows lie.


@pytest.mark.parametrize("key", GOLDEN["window_starts"])
def test_starts_are_the_released_ones(key):
    assert list(window_starts(*numbers(key))) == GOLDEN["window_starts"][key]


@given(axes)
def test_windows_cover_every_position_and_share_the_overlap(axis):
    length, size, overlap = axis
    starts = window_starts(length, size, overlap)
    covered = {start + offset for start in starts for offset in range(min(size, length))}
    assert covered == set(range(length))
    assert all(start + size - following >= overlap for start, following in pairwise(starts))
    assert list(starts) == sorted(set(starts))


@pytest.mark.parametrize(("length", "size", "overlap"), [(0, 4, 1), (9, 4, 4), (9, 4, -1)])
def test_impossible_windows_are_refused(length, size, overlap):
    with pytest.raises(UsageError, match=f"length={length}, size={size}, overlap={overlap}"):
        window_starts(length, size, overlap)


@given(axes)
def test_a_stream_is_cut_as_if_its_length_were_known(axis):
    length, size, overlap = axis
    starts = window_starts(length, size, overlap)
    read = 0

    def frames():
        nonlocal read
        for read in range(1, length + 1):
            yield read - 1

    cut = []
    for window in stream_windows(frames(), temporal(size, overlap)):
        assert read <= window.start + 2 * size - overlap, "looked further ahead than promised"
        cut.append(window)
    assert tuple(window.start for window in cut) == starts
    assert tuple(window.next_start for window in cut) == (*starts[1:], None)
    assert tuple(window.previous_start for window in cut) == (None, *starts[:-1])
    assert [window.is_last for window in cut] == [False] * (len(starts) - 1) + [True]
    for window in cut:
        assert window.items == tuple(range(window.start, min(window.start + size, length)))


def test_an_empty_stream_has_no_windows():
    assert list(stream_windows([], temporal(33, 8))) == []


def test_one_frame_is_one_window():
    (window,) = stream_windows(["frame"], temporal(33, 8))
    assert (window.start, window.items, window.is_last) == (0, ("frame",), True)


# Weights.


@pytest.mark.parametrize("key", GOLDEN["blend_1d"])
def test_released_feather_is_the_released_ramp(key):
    size, overlap = numbers(key)
    weights = window_weights(7, None, None, size, overlap, "released")
    assert weights.tolist() == pytest.approx(GOLDEN["blend_1d"][key], rel=1e-6)


def test_shared_feather_ramps_only_where_windows_overlap():
    first, last = axis_weights((0, 3), size=5, length=8, overlap=2, feather="shared")
    assert first.tolist() == pytest.approx([1, 1, 1, 2 / 3, 1 / 3])
    assert last.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_shared_feather_follows_the_moved_last_window():
    weights = axis_weights((0, 3, 4), size=5, length=9, overlap=2, feather="shared")
    assert weights[1].tolist() == pytest.approx([1 / 3, 2 / 3, 3 / 5, 2 / 5, 1 / 5])
    assert weights[2].tolist() == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1])


@given(axes)
def test_shared_weights_are_one_where_a_window_is_alone_and_else_between_0_and_1(axis):
    length, size, overlap = axis
    starts = window_starts(length, size, overlap)
    weights = axis_weights(starts, size, length, overlap, "shared")
    count = torch.zeros(length)
    for start in starts:
        count[start : start + size] += 1
    for start, weight in zip(starts, weights, strict=True):
        alone = count[start : start + size] == 1
        assert (weight[alone] == 1).all()
        assert ((weight[~alone] > 0) & (weight[~alone] < 1)).all()


@pytest.mark.parametrize("feather", FEATHERS)
@given(axis=axes)
def test_normalised_weights_sum_to_one(feather, axis):
    length, size, overlap = axis
    starts = window_starts(length, size, overlap)
    weights = axis_weights(starts, size, length, overlap, feather)
    assert weights.shape == (len(starts), min(size, length))
    assert weights.min() > 0
    total = torch.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + size] += weight
    share = torch.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        share[start : start + size] += weight / total[start : start + size]
    torch.testing.assert_close(share, torch.ones(length))


def test_two_windows_share_weights_that_already_sum_to_one():
    first, last = axis_weights((0, 17), size=33, length=50, overlap=16, feather="shared")
    torch.testing.assert_close(first[17:] + last[:16], torch.ones(16))


# Blending in space.

TILES = Windows(frames=5, overlap_frames=2, height=32, width=48, overlap_pixels=10)


def test_tiles_cover_the_picture_row_by_row():
    spans = [(t.y.start, t.y.stop, t.x.start, t.x.stop) for t in tiles(40, 90, TILES)]
    rows, columns = [(0, 32), (8, 40)], [(0, 48), (38, 86), (42, 90)]
    assert spans == [(*y, *x) for y in rows for x in columns]


@pytest.mark.parametrize("feather", FEATHERS)
def test_tiles_of_a_constant_are_seamless(feather):
    windows = Windows(height=32, width=48, overlap_pixels=10, feather=feather)
    clip = torch.full((2, 3, 75, 131), 0.7)
    assert (tiled(clip, windows) - clip).abs().max() <= 1e-6


@pytest.mark.parametrize("feather", FEATHERS)
def test_tiles_of_an_identity_give_the_input(feather):
    windows = Windows(height=32, width=48, overlap_pixels=10, feather=feather)
    clip = torch.rand(2, 3, 75, 131)
    assert (tiled(clip, windows) - clip).abs().max() <= 1e-6


def test_tiles_that_disagree_are_faded_not_cut():
    levels = iter([0.0, 1.0])
    clip = torch.zeros(1, 3, 32, 86)
    row = tiled(clip, TILES, lambda picture: torch.full_like(picture, next(levels)))[0, 0, 5]
    assert (row[:38] == 0).all()
    assert (row[48:] == 1).all()
    torch.testing.assert_close(row[37:49].diff(), torch.full((11,), 1 / 11))


def test_one_tile_is_returned_as_it_is():
    clip = torch.rand(2, 3, 20, 30)
    result = torch.rand(2, 3, 20, 30)
    assert tiled(clip, TILES, lambda picture: result) is result


def test_half_precision_tiles_are_summed_in_fp32():
    clip = torch.full((1, 3, 60, 60), 0.7).bfloat16()
    result = tiled(clip, TILES)
    assert result.dtype == torch.float32
    assert (result - clip.float()).abs().max() <= 1e-6


def test_uncovered_pixels_are_a_bug():
    blender = TileBlender((1, 3, 60, 60))
    blender.add(tiles(60, 60, TILES)[0], torch.zeros(1, 3, 32, 48))
    with pytest.raises(AssertionError, match="do not cover"):
        blender.result()


# Blending in time.


@pytest.mark.parametrize("feather", FEATHERS)
@settings(deadline=None)
@given(axis=axes)
def test_windows_in_time_of_an_identity_give_the_input(feather, axis):
    length, size, overlap = axis
    clip = torch.linspace(0, 1, length).reshape(length, 1, 1, 1).expand(-1, 3, 1, 2)
    result = restored(clip, temporal(size, overlap, feather))
    assert (result - clip).abs().max() <= 1e-6


def test_windows_in_time_that_disagree_are_faded_not_cut():
    levels = iter([0.0, 1.0])
    clip = torch.zeros(8, 3, 2, 2)
    result = restored(clip, temporal(5, 2), lambda picture: torch.full_like(picture, next(levels)))
    assert result[:, 0, 0, 0].tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])


def test_three_windows_can_share_a_frame():
    clip = torch.rand(9, 3, 2, 2)
    starts = [window.start for window in stream_windows(clip, temporal(5, 3))]
    assert starts == [0, 2, 4]  # frame 4 is in all three
    levels = iter([1.0, 2.0, 4.0])
    result = restored(clip, temporal(5, 3), lambda picture: torch.full_like(picture, next(levels)))
    weights = [1 / 5, 3 / 5, 1 / 5]  # of 1/4, 3/4 and 1/4, normalised
    assert result[4, 0, 0, 0].item() == pytest.approx(
        sum(w * v for w, v in zip(weights, (1, 2, 4), strict=True))
    )


def test_a_frame_of_one_window_is_returned_as_it_is():
    clip = torch.rand(8, 3, 2, 2)
    for feather in FEATHERS:
        result = restored(clip, temporal(5, 2, feather))
        assert torch.equal(result[[0, 1, 2, 5, 6, 7]], clip[[0, 1, 2, 5, 6, 7]])


def test_pushed_pictures_are_neither_changed_nor_kept():
    windows = temporal(5, 2)
    blender = TemporalBlender(windows)
    for window in stream_windows(torch.rand(30, 3, 2, 2), windows):
        picture = torch.stack(window.items)
        before, storage = picture.clone(), weakref.ref(picture.untyped_storage())
        blender.push(window, picture)
        assert torch.equal(picture, before)
        finished = list(blender.pop_finished(window))
        assert len(finished) == window.finished
        del picture, finished
        assert storage() is None, "the blender holds on to a whole window"


# Padding.


@pytest.mark.parametrize("key", GOLDEN["padded_shapes"])
def test_padded_sizes_are_the_released_ones(key):
    frames, height, width = numbers(key)
    padded = pad_clip(torch.zeros(frames, 1, height, width), 4, 16)
    assert [len(padded), *padded.shape[2:]] == GOLDEN["padded_shapes"][key]


def test_padding_repeats_the_last_frame_row_and_column():
    clip = torch.rand(2, 3, 5, 7)
    padded = pad_clip(clip, 4, 4)
    assert padded.shape == (5, 3, 8, 8)
    for index in ((4, 0, 0), (0, 7, 3), (1, 2, 7), (3, 6, 7)):
        frame, y, x = (min(i, n - 1) for i, n in zip(index, (2, 5, 7), strict=True))
        assert torch.equal(padded[index[0], :, index[1], index[2]], clip[frame, :, y, x])
    assert torch.equal(crop_clip(padded, clip), clip)


def test_nothing_to_pad_copies_nothing():
    clip = torch.rand(5, 3, 8, 8)
    assert pad_clip(clip, 4, 8) is clip
    assert len(pad_clip(torch.rand(6, 3, 8, 8), 1, 8)) == 6
