"""Windows in time start anew at every cut: nothing of one scene reaches another."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import SMALL, upscaler

from psssr_fast.arrays import to_planar
from psssr_fast.config import SceneCuts, Windows, settings_for
from psssr_fast.jobs.plan import restart_frame
from psssr_fast.scenes import find_cuts
from psssr_fast.video import open_reader
from psssr_fast.windows import TemporalBlender, stream_windows

streams = st.integers(1, 12).flatmap(
    lambda size: st.tuples(
        st.integers(1, 60), st.just(size), st.integers(0, size - 1), st.sets(st.integers(-2, 62))
    )
)


def temporal(size: int, overlap: int, feather: str = "shared") -> Windows:
    return Windows(frames=size, overlap_frames=overlap, feather=feather)


def restored(frames, windows, cuts=(), first=0):
    """What comes out if a window's result depends on all of its frames."""
    blender, out = TemporalBlender(windows), []
    for window in stream_windows(frames, windows, cuts, first):
        clip = torch.stack(window.items)
        blender.push(window, clip + clip.mean(dim=0))
        out.extend(blender.pop_finished(window))
    return out


def scenes_of(frames, cuts):
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(frames)), len(frames)]
    return [frames[a:b] for a, b in pairwise(edges)]


def clip(length: int) -> torch.Tensor:
    return torch.rand(length, 3, 1, 2, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("feather", ["shared", "released"])
@settings(deadline=None)
@given(stream=streams)
def test_a_cut_stream_is_its_scenes_one_by_one(feather, stream):
    length, size, overlap, cuts = stream
    windows, frames = temporal(size, overlap, feather), clip(length)
    alone = [frame for scene in scenes_of(frames, cuts) for frame in restored(scene, windows)]
    together = restored(frames, windows, tuple(cuts))
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@settings(deadline=None)
@given(streams)
def test_no_window_reaches_across_a_cut_and_all_frames_are_covered(stream):
    length, size, overlap, cuts = stream
    covered = set()
    for window in stream_windows(range(length), temporal(size, overlap), tuple(cuts)):
        covered.update(window.items)
        assert window.items == tuple(range(window.start, window.start + len(window.items)))
        assert not cuts & set(window.items[1:])
    assert covered == set(range(length))


@pytest.mark.parametrize("feather", ["shared", "released"])
@settings(deadline=None)
@given(stream=streams, data=st.data())
def test_a_run_can_start_again_at_any_frame_with_the_same_bits(feather, stream, data):
    length, size, overlap, cuts = stream
    windows, frames = temporal(size, overlap, feather), clip(length)
    wanted = data.draw(st.integers(0, length - 1))
    first = restart_frame(wanted, windows, tuple(cut for cut in cuts if 0 < cut < length))
    again = restored(frames[first:], windows, tuple(cuts), first)[wanted - first :]
    whole = restored(frames, windows, tuple(cuts))[wanted:]
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


def test_cuts_may_be_found_on_the_way():
    def halves(frames):
        return ((frame, index == 5) for index, frame in enumerate(frames))

    windows, frames = temporal(4, 1), clip(11)
    for found, known in zip(
        restored(frames, windows, halves), restored(frames, windows, (5,)), strict=True
    ):
        assert torch.equal(found, known)


# The whole product.


@pytest.fixture(scope="module")
def two_scenes() -> np.ndarray:
    """Seven frames of a bright picture, one of a dark one, eight of stripes; all of them moving."""
    y, x = np.mgrid[0:24, 0:32]
    bright = [180 + 60 * np.sin((x + t) / 6) for t in range(7)]
    dark = [20 + 15 * np.sin(y / 5)]
    stripes = [110 + 100 * np.sign(np.sin((y + t / 4) / 3)) for t in range(8)]
    frames = np.stack([np.stack([f, f * 0.9, f * 0.8], -1) for f in bright + dark + stripes])
    return frames.astype(np.uint8)


def test_frames_beside_a_cut_are_those_of_the_scenes_by_themselves(two_scenes):
    up = upscaler()
    assert find_cuts(two_scenes, SceneCuts()) == (7, 8)
    alone = np.concatenate([up(scene, scale=1) for scene in np.split(two_scenes, (7, 8))])
    assert np.array_equal(up(two_scenes, scale=1), alone)
    blind = upscaler(settings=replace(up.settings, scenes=SceneCuts(detector="off")))
    changed = (blind(two_scenes, scale=1) != alone).any(axis=(1, 2, 3))
    assert changed[6:9].all(), "this test cannot see what is blended across a cut"


def test_floats_are_cut_where_arrays_are(two_scenes):
    up = upscaler()
    floats = torch.from_numpy(two_scenes).permute(0, 3, 1, 2) / 255
    alone = torch.cat([up(scene, scale=1) for scene in floats.split([7, 1, 8])])
    assert torch.equal(up(floats, scale=1), alone)


def test_known_cuts_give_what_found_ones_give(two_scenes):
    up, planar = upscaler(), [to_planar(frame) for frame in two_scenes]
    found = list(up._restore(iter(planar), (24, 32)))
    known = list(up._restore(iter(planar), (24, 32), cuts=(7, 8)))
    assert all(torch.equal(a, b) for a, b in zip(found, known, strict=True))


@pytest.mark.parametrize("detector", ["auto", "off"])
@pytest.mark.parametrize("size", [(1, 0), (4, 0), (4, 1), (5, 3)])
def test_look_ahead_is_exact(detector, size):
    frames, overlap = size
    windows = replace(SMALL, frames=frames, overlap_frames=overlap)
    settings = replace(settings_for("released", windows), scenes=SceneCuts(detector=detector))
    up, read = upscaler(settings=settings), 0

    def source():
        nonlocal read
        for _ in range(30):
            read += 1
            yield np.full((8, 8, 3), 100, np.uint8)

    ahead = []
    for index, _ in enumerate(up.stream(source(), scale=1)):
        ahead.append(read - index - 1)
    assert max(ahead) == up.lookahead_frames
    assert ahead[0] == up.lookahead_frames, "the first frame waits longest"


def test_a_job_that_goes_on_finds_the_cuts_again(tmp_path):
    """Stopped within a scene, beside a cut, and with a cut in the frames that are redone."""
    source = tmp_path / "in.mkv"
    y, x = np.mgrid[0:36, 0:64]
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv444p"
        for index in range(40):
            scene = sum(index >= cut for cut in (9, 20, 23, 33))
            luma = 50 + 40 * scene + 40 * np.sin(x / (3 + scene) + index / 7) * np.cos(y / 4)
            pixels = np.repeat(luma[..., None], 3, axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    with open_reader(source) as reader:
        assert find_cuts((frame.pixels for frame in reader), SceneCuts()) == (9, 20, 23, 33)

    upscale = partial(upscaler().upscale_video, scale=1, chunk_frames=6)

    class Stop(Exception):
        pass

    def stop_at(frame):
        def progress(so_far):
            if so_far.frames_done >= frame:
                raise Stop

        return progress

    for stop in (8, 21, 24, 39):
        with pytest.raises(Stop):
            upscale(source, tmp_path / "a.mp4", progress=stop_at(stop))
    resumed = upscale(source, tmp_path / "a.mp4")
    upscale(source, tmp_path / "b.mp4")
    assert resumed.resumed_frames > 24
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
