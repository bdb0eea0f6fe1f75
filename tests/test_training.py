"""Training of the embedded model: the material, and every stage really learning."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import InputError
from psssr_fast.models.sizes import NANO
from psssr_fast.training import nano
from psssr_fast.training.clips import Degradation, HeldOut, degrade, load_sources, sample_clips


@pytest.fixture
def folder(tmp_path):
    """A photo and a ten-frame video whose frame ``t`` has brightness ``20 t``."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    with av.open(str(tmp_path / "ramp.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        for t in range(10):
            pixels = np.full((80, 96, 3), 20 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_held_out_frames_are_never_loaded(folder):
    photo, video = load_sources(folder, (HeldOut("ramp.mp4", 4),))
    assert photo.shape == (1, 3, 70, 90)
    assert video.shape == (6, 3, 80, 96)
    assert video.max() <= 20 * 5 + 2


def test_a_held_out_video_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match=r"held-out video 'other\.mp4' is not below it"):
        load_sources(folder, (HeldOut("other.mp4", 4),))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no photos or videos found"):
        load_sources(tmp_path)


def test_clips_are_the_same_for_the_same_seed(folder):
    sources = load_sources(folder)

    def first(seed):
        return next(sample_clips(sources, 3, 4, 32, torch.Generator().manual_seed(seed)))

    assert first(1).shape == (3, 3, 4, 32, 32)
    assert -1 <= first(1).min() < first(1).max() <= 1
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_degradation_is_bicubic_by_four_and_back():
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((2, 3, 2, 32, 32), 0.5)
    low = degrade(flat, Degradation(noisy=0), generator)
    assert (low - flat).abs().max() <= 1 / 127.5
    noise = torch.rand(2, 3, 2, 32, 32) * 2 - 1
    low = degrade(noise, Degradation(noisy=0), generator)
    assert low.shape == noise.shape
    assert low.std() < 0.5 * noise.std()  # what is finer than the small picture is gone
    noisy = degrade(flat, Degradation(noise=30, noisy=1), generator)
    assert noisy.std() > 0.01


def test_the_draft_starts_as_the_bases_kept_blocks_on_its_features():
    torch.manual_seed(0)
    model = nano.Model.fresh()
    model.draft_from_base()
    for j, i in enumerate(NANO.dit.kept_blocks):
        ours = model.draft.blocks[j].state_dict()
        theirs = model.base.blocks[i].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert torch.equal(model.draft.fc_layers[j].weight[:, : NANO.dit.dim], torch.eye(128))
        assert not model.draft.fc_layers[j].weight[:, NANO.dit.dim :].any()
    assert torch.equal(model.draft.patch_embedding.weight, model.base.patch_embedding.weight)


@pytest.mark.parametrize("loss", [nano.codec_loss, nano.base_loss, nano.draft_loss])
def test_every_stage_learns(folder, loss):
    torch.manual_seed(0)
    model = nano.Model.fresh()
    model.draft_from_base()
    generator = torch.Generator().manual_seed(0)
    high = next(sample_clips(load_sources(folder), 2, 2, 32, generator))
    batch = nano.Batch(high, degrade(high, Degradation(), generator))
    module = {
        nano.codec_loss: model.codec,
        nano.base_loss: model.base,
        nano.draft_loss: model.draft,
    }
    parameters = list(module[loss].parameters())
    with torch.no_grad():
        model.codec.draw.weight.normal_(std=0.01)
        torch.manual_seed(1)  # the same clips lose their features before and after
        before = float(loss(model, batch))
    nano.train("test", parameters, lambda: loss(model, batch), 0.05, 1e-3)
    with torch.no_grad():
        torch.manual_seed(1)
        assert float(loss(model, batch)) < before  # on the batch it was trained on: not by luck


def test_a_whole_run_writes_a_model_that_loads(folder, tmp_path):
    recipe = nano.Recipe(0.01, 0.01, 0.01, codec_batch=1, clip_batch=1, clip_frames=2, crop=32)
    model = nano.run(load_sources(folder), recipe, tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.size == NANO
    for name, tensor in model.draft.state_dict().items():
        assert torch.equal(loaded.draft[name].float(), tensor.half().float())
