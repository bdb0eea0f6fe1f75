"""What is trained on: manifests, shots, held-out frames; samples as functions of seed and index."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from psssr_fast.errors import InputError, UsageError
from psssr_fast.training.data import HELD_OUT, Clips, ClipShape, batches
from psssr_fast.training.manifest import load_manifest, make_manifest, sha256, write_manifest

DATA = Path(__file__).parents[1] / "data"
SHAPE = ClipShape(frames=3, size=32, degradation="bicubic")
LICENCES = [("*", "CC0")]


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def frame(t):
    """Frame ``t`` of two scenes, the second from frame 10 on; its blue level is ``20 + 8 t``."""
    y, x = np.mgrid[0:48, 0:64]
    scene = 20 + x + y if t < 10 else 230 - x - y
    return np.stack([scene, scene, np.full_like(scene, 20 + 8 * t)], axis=-1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A photo, and a video of 24 frames."""
    shutil.copy(DATA / "photo_256.png", tmp_path / "photo.png")
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/ramp.mp4", [frame(t) for t in range(24)])
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_manifest_says_what_is_there_and_survives_its_file(folder):
    made = make_manifest(folder, [("videos/*", "CC BY 4.0"), ("*", "CC0")], [("*/ramp.mp4", 4)])
    photo, video = made.sources
    assert (photo.path, photo.licence, photo.frames) == ("photo.png", "CC0", 1)
    assert (video.path, video.licence, video.held_out) == ("videos/ramp.mp4", "CC BY 4.0", 4)
    assert (video.frames, video.height, video.width, video.cuts) == (24, 48, 64, (10,))
    assert video.sha256 == sha256(folder / "videos/ramp.mp4")
    assert video.shots() == [(0, 10), (10, 20)]
    assert video.shots(held_out=True) == [(20, 24)]
    write_manifest(made, folder / "manifest.json")
    assert load_manifest(folder) == made


def test_files_without_a_licence_are_refused_unless_allowed(folder):
    with pytest.raises(InputError, match=r"no licence is recorded for photo\.png and 1 more"):
        load_manifest(folder)
    assert len(load_manifest(folder, allow_unlicensed=True).sources) == 2
    write_manifest(make_manifest(folder, [("*.png", "CC0")]), folder / "manifest.json")
    with pytest.raises(InputError, match=r"no licence is recorded for videos/ramp\.mp4; write"):
        load_manifest(folder)


def test_bad_manifests_are_refused_in_one_line(folder, tmp_path_factory):
    path = folder / "manifest.json"
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match="no photos or videos found"):
        load_manifest(empty)
    with pytest.raises(InputError, match="no such folder"):
        make_manifest(empty / "no")
    with pytest.raises(InputError, match="nothing below it matches 'other"):
        make_manifest(folder, held_out=[("other.mp4", 2)])
    with pytest.raises(UsageError, match="25 of its 24 frames"):
        make_manifest(folder, held_out=[("*.mp4", 25)])
    write_manifest(make_manifest(folder, LICENCES), path)
    good = json.loads(path.read_text())
    for change, message in (
        ({"schema": "other"}, "its schema is not"),
        ({"sources": []}, "lists no sources"),
        ({"sources": [{**good["sources"][0], "path": "../x.png"}]}, "not below the folder"),
        ({"sources": [{**good["sources"][0], "path": "x.png"}]}, "no such file"),
        ({"sources": [{"path": "photo.png"}]}, "an entry makes no sense"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=message):
            load_manifest(folder)
    path.write_text("{")
    with pytest.raises(InputError, match="not a manifest"):
        load_manifest(folder)


def test_a_sample_depends_on_seed_and_index_alone(folder):
    manifest = make_manifest(folder, LICENCES)
    clips = Clips(manifest, SHAPE, seed=3)
    samples = [clips[i] for i in range(6)]
    again = Clips(manifest, SHAPE, seed=3)
    for index in (4, 0, 5, 2):  # in another order, by an object that made none before
        assert all(torch.equal(a, b) for a, b in zip(again[index], samples[index], strict=True))
    assert not torch.equal(Clips(manifest, SHAPE, seed=4)[0][0], samples[0][0])
    assert len({tuple(high.flatten()[:50].tolist()) for high, _ in samples}) == 6
    for high, low in samples:
        assert high.shape == low.shape == (3, 3, 32, 32)
        assert high.min() >= -1 and high.max() <= 1
    repeated = Clips(manifest, SHAPE, seed=3, repeat=2)
    assert torch.equal(repeated[5][0], samples[1][0])


def test_a_margin_shows_clips_as_a_part_of_something_larger(folder):
    photo = make_manifest(folder, LICENCES)
    only = type(photo)(folder, photo.sources[:1])
    size, margin = 32, 4

    def clip(shape):
        return Clips(only, shape, 5)[2]

    large = clip(replace(SHAPE, size=size + 2 * margin * 4))
    high, low = clip(replace(SHAPE, size=size, margin=margin))
    cut = ..., slice(16, 16 + size), slice(16, 16 + size)
    assert torch.equal(high, large[0][cut]) and torch.equal(low, large[1][cut])
    with pytest.raises(InputError, match="use smaller clips"):
        Clips(only, replace(SHAPE, size=224, margin=8), 0)


def test_clips_never_cross_a_cut_and_never_show_held_out_frames(folder, tmp_path):
    manifest = make_manifest(folder, LICENCES, [("*.mp4", 4)])
    only = type(manifest)(folder, manifest.sources[1:])

    def numbers(stream):
        """The frames of 60 clips, by their blue level."""
        shape = ClipShape(frames=4, size=32, degradation="bicubic")
        clips = Clips(only, shape, 0, tmp_path / "cache", stream)
        blue = torch.stack([(clips[i][0][2].mean((1, 2)) + 1) * 127.5 for i in range(60)])
        return ((blue - 20) / 8).round().int()

    seen = numbers(0)
    assert torch.equal(seen - seen[:, :1], torch.arange(4).int().expand(60, 4))
    assert set(seen[:, 0].tolist()) == {*range(7), *range(10, 17)}  # no 7 to 9: across the cut
    assert torch.equal(numbers(HELD_OUT), torch.arange(20, 24).int().expand(60, 4))


def test_a_cache_of_frames_changes_nothing(folder, tmp_path):
    manifest = make_manifest(folder, LICENCES)
    plain = Clips(manifest, SHAPE, seed=1)
    cached = Clips(manifest, SHAPE, seed=1, cache=tmp_path / "frames")
    for _ in range(2):  # filling it, and from it
        for index in range(8):
            assert torch.equal(plain[index][0], cached[index][0])
    assert len(list((tmp_path / "frames").iterdir())) == 1


def test_another_file_under_the_name_is_noticed(folder):
    manifest = make_manifest(folder, LICENCES)
    Image.new("RGB", (320, 256)).save(folder / "photo.png")
    clips = Clips(type(manifest)(folder, manifest.sources[:1]), SHAPE, seed=0)
    with pytest.raises(InputError, match="not the file of the manifest"):
        clips[0]


def test_clips_that_fit_nowhere_are_refused(folder):
    manifest = make_manifest(folder, LICENCES)
    with pytest.raises(InputError, match="no clip of 3 frames and 272x272 pixels is to train on"):
        Clips(manifest, ClipShape(frames=3, size=272), seed=0)
    with pytest.raises(InputError, match="is held out"):
        Clips(manifest, SHAPE, seed=0, stream=HELD_OUT)
    wide = Clips(manifest, ClipShape(frames=2, size=32, wide=64), seed=0)
    assert wide[0][0].shape == (3, 2, 32, 64)


def test_batches_can_begin_at_any_step_and_are_shared_out_between_processes(folder):
    clips = Clips(make_manifest(folder, LICENCES), SHAPE, seed=0)

    def indices(count, *where):
        found = batches(clips, *where)
        return [next(found).indices for _ in range(count)]

    assert indices(3, 2) == [(0, 1), (2, 3), (4, 5)]
    assert indices(2, 2, 1) == [(2, 3), (4, 5)]
    assert indices(2, 2, 0, 0, 0, 2) == [(0, 1), (4, 5)]
    assert indices(2, 2, 0, 0, 1, 2) == [(2, 3), (6, 7)]


def test_worker_processes_make_the_same_batches_and_end_in_silence(folder, capfd):
    shape = ClipShape(frames=3, size=32, degradation="light")
    clips = Clips(make_manifest(folder, LICENCES), shape, seed=0)
    here, there = batches(clips, 2, first_step=5), batches(clips, 2, first_step=5, workers=1)
    before = torch.get_rng_state()
    for _ in range(3):
        ours, theirs = next(here), next(there)
        assert ours.indices == theirs.indices
        assert torch.equal(ours.high, theirs.high) and torch.equal(ours.low, theirs.low)
    assert torch.equal(torch.get_rng_state(), before)
    there.close()  # while they are making more
    assert capfd.readouterr().err == ""
