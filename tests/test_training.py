"""Training of the embedded model: the material, and every stage really learning."""

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import InputError
from psssr_fast.models.sizes import NANO
from psssr_fast.training import nano
from psssr_fast.training.clips import HeldOut, Sampler, load_material


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A photo and a ten-frame video whose frame ``t`` has brightness ``20 t``."""
    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (14, 18, 3), np.uint8))
    small.resize((90, 70), Image.Resampling.BICUBIC).save(folder / "photo.png")
    with av.open(str(folder / "ramp.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        for t in range(10):
            pixels = np.full((80, 96, 3), 20 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def material(folder):
    return load_material(folder, size=40)


class Judge(nn.Module):
    """Stands in for LPIPS: differences of neighbouring pixels, one value a frame."""

    def forward(self, result, truth):
        return (result.diff(dim=-1) - truth.diff(dim=-1)).abs().mean((1, 2, 3))


RECIPE = nano.Recipe(
    codec_steps=1,
    base_steps=1,
    decoder_steps=1,
    draft_steps=1,
    codec_batch=1,
    clip_batch=1,
    clip_frames=2,
    crop=32,
    judged_frames=1,
)


def test_held_out_frames_are_never_loaded(folder):
    material = load_material(folder, (HeldOut("ramp.mp4", 4),), size=40)
    videos = [clip for clip in material.clips if clip.high.shape[-1] == 96]
    assert len(videos) == 8
    assert max(int(clip.high.max()) for clip in videos) <= 20 * 5 + 2


def test_a_held_out_video_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match=r"held-out video 'other\.mp4' is not below it"):
        load_material(folder, (HeldOut("other.mp4", 4),))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no photos or videos found"):
        load_material(tmp_path)


def test_sources_hold_their_reductions(material):
    assert [tuple(photo.high.shape) for photo in material.photos] == [(1, 3, 64, 88)]
    for source in (*material.photos, *material.clips):
        frames, _, height, width = source.high.shape
        assert [tuple(low.shape) for low in source.lows] == [
            (frames, 3, height // 4, width // 4)
        ] * 3


def test_photos_become_clips_of_a_moving_camera(material):
    panned = [clip.high for clip in material.clips if clip.high.shape[-1] == 40]
    assert len(panned) == 5
    assert any((clip[0] != clip[-1]).any() for clip in panned)


def test_no_clip_lies_across_a_cut(tmp_path):
    with av.open(str(tmp_path / "cut.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for t in range(40):
            pixels = np.full((64, 64, 3), 200 if t >= 20 else 40, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    clips = load_material(tmp_path).clips
    assert clips
    assert all(int(clip.high.max()) - int(clip.high.min()) < 100 for clip in clips)


def test_batches_are_the_same_for_the_same_seed(material):
    def first(seed):
        return Sampler(material, seed).batch(3, 4, 32)

    assert first(1).high.shape == first(1).low.shape == (3, 3, 4, 32, 32)
    assert -1 <= first(1).high.min() < first(1).high.max() <= 1
    assert torch.equal(first(1).high, first(1).high)
    assert torch.equal(first(1).low, first(1).low)
    assert not torch.equal(first(1).high, first(2).high)


def test_both_pictures_of_a_batch_show_the_same_place(material):
    """Of a smooth photo the enlargement is the picture; shifted by a pixel it is not."""
    sampler = Sampler(material, 0, clean=1.0)
    pairs = [sampler.batch(8, 1, 32) for _ in range(4)]
    high = torch.cat([batch.high for batch in pairs])[..., 4:-4, 4:-4]
    low = torch.cat([batch.low for batch in pairs])
    error = {
        shift: float((low.roll(shift, (-2, -1))[..., 4:-4, 4:-4] - high).abs().mean())
        for shift in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    }
    assert min(error, key=error.get) == (0, 0)


def test_the_draft_starts_as_the_bases_kept_blocks_on_its_features():
    torch.manual_seed(0)
    model = nano.Model.fresh()
    model.draft_from_base(shift=0.5)
    bias = model.draft.head.head.bias - model.base.head.head.bias
    assert bias.tolist() == [0.5, -0.5] * 32
    dim = NANO.dit.dim
    for j, i in enumerate(NANO.dit.kept_blocks):
        ours = model.draft.blocks[j].state_dict()
        theirs = model.base.blocks[i].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert torch.equal(model.draft.fc_layers[j].weight[:, :dim], torch.eye(dim))
        assert not model.draft.fc_layers[j].weight[:, dim:].any()
    assert torch.equal(model.draft.patch_embedding.weight, model.base.patch_embedding.weight)


@pytest.mark.parametrize("stage", ["codec", "base", "draft"])
def test_every_stage_learns(material, stage):
    """On one batch, with the same draws before, during and after: not by luck."""
    torch.manual_seed(0)
    model = nano.Model.fresh()
    model.draft_from_base()
    batch = Sampler(material, 0).batch(2, 2, 32)
    module = {"codec": model.codec, "base": model.base, "draft": model.draft}[stage]

    def loss():
        fresh = {
            "codec": nano.codec_loss,
            "base": nano.BaseLoss(0),
            "draft": nano.DraftLoss(Judge(), 1.0, frames=1),
        }[stage]
        return fresh(model, batch)

    with torch.no_grad():
        model.codec.draw.weight.normal_(std=0.01)
        before = float(loss())
    nano.train("test", list(module.parameters()), loss, steps=12, rate=1e-3)
    with torch.no_grad():
        assert float(loss()) < before


def test_the_draft_is_judged_behind_the_frequency_update():
    """What the update does not take, colour, cannot be seen by the judge."""
    torch.manual_seed(0)
    loss = nano.DraftLoss(Judge(), 1.0, frames=1)
    base, sharp = torch.rand(2, 1, 3, 2, 32, 32).sub(0.5)
    change = loss._updated(base, sharp) - base
    assert torch.allclose(change, change[:, :1].expand_as(change), atol=1e-6)
    assert change.abs().max() > 0.01


def test_a_whole_run_writes_a_model_that_loads(material, tmp_path):
    model = nano.run(material, RECIPE, Judge(), tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.size == NANO
    for name, tensor in model.draft.state_dict().items():
        assert torch.equal(loaded.draft[name].float(), tensor.half().float())
    again = nano.run(
        material, RECIPE, Judge(), tmp_path / "b.safetensors", tmp_path / "model.safetensors"
    )
    assert again.codec.draw.weight.shape == model.codec.draw.weight.shape
