"""The product's Python face: clips, streams, and the windows underneath."""

import json
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest
import torch
from model_fixtures import SMALL, networks, upscaler

from psssr_fast.config import settings_for
from psssr_fast.errors import InputError, OutOfMemory, UsageError
from psssr_fast.resize import resize_frames


def array(frames=6, height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def bicubic(clip: np.ndarray, height: int, width: int) -> np.ndarray:
    x = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = ((resize_frames(x, height, width) + 1) * 127.5).round()
    return y.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def test_an_untrained_codec_makes_it_bicubic_through_all_windows_and_tiles():
    """Six windows in time and twelve tiles: their places and weights cannot be wrong unseen."""
    clip = array(frames=11, height=33, width=47)
    result = upscaler(trained=False)(clip)
    expected = bicubic(clip, 132, 188)
    assert result.shape == (11, 132, 188, 3)
    assert result.dtype == np.uint8
    assert np.abs(result.astype(int) - expected).max() <= 1  # rounding of the blend


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 9])
def test_as_many_frames_come_out_as_go_in(frames):
    assert upscaler()(array(frames, 8, 8)).shape == (frames, 32, 32, 3)


def test_torch_clip_gives_a_torch_clip_of_its_dtype():
    clip = torch.rand(3, 3, 9, 7, dtype=torch.float16)
    result = upscaler()(clip, scale=2)
    assert (result.shape, result.dtype) == ((3, 3, 18, 14), torch.float16)
    assert 0 <= result.min() <= result.max() <= 1


def test_torch_and_numpy_give_the_same_picture():
    clip = array(2, 8, 8)
    from_array = upscaler()(clip)
    from_tensor = upscaler()(torch.from_numpy(clip).permute(0, 3, 1, 2) / 255)
    rounded = (from_tensor * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert np.abs(from_array.astype(int) - rounded).max() <= 1


def test_target_height_keeps_the_shape():
    assert upscaler()(array(1, 18, 32), height=54).shape == (1, 54, 96, 3)


def test_result_can_be_used_in_autograd():
    result = upscaler()(torch.rand(1, 3, 8, 8))
    (result * torch.ones(1, requires_grad=True)).sum().backward()


def test_stream_equals_the_clip_and_is_lazy():
    up, clip = upscaler(), array(9, 8, 8)
    assert np.array_equal(np.stack(list(up.stream(iter(clip)))), up(clip))
    read = count()
    endless = (clip[next(read) % 9] for _ in count())
    assert len(list(islice(up.stream(endless), 5))) == 5
    assert next(read) <= 5 + up.lookahead_frames


def test_a_stream_without_frames_is_empty():
    assert list(upscaler().stream([])) == []


def test_released_rounding_truncates():
    up = upscaler(trained=False)
    clip = np.full((1, 8, 8, 3), 200, np.uint8)
    assert (up(clip) == 200).all()
    up.settings = replace(up.settings, released_rounding=True)
    assert set(np.unique(up(clip))) <= {198, 199, 200}


@pytest.mark.parametrize("feather", ["shared", "released"])
def test_tiles_of_a_constant_are_seamless(feather):
    windows = replace(SMALL, feather=feather)
    up = upscaler(trained=False, settings=settings_for("released", windows))
    result = up(torch.full((9, 3, 40, 56), 0.4))
    assert result.shape == (9, 3, 160, 224)  # three windows in time, twelve tiles each
    assert (result - 0.4).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (array()[0], r"got ndarray of shape \[20, 30, 3\]"),
        (array().astype(np.float32), r"got ndarray float32 \[20, 30, 3\]"),
        (array()[..., :2], r"got ndarray uint8 \[20, 30, 2\]"),
        (torch.zeros(2, 8, 8, 3), r"got Tensor torch.float32 \[8, 8, 3\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"got Tensor torch.uint8"),
        ([np.zeros((8, 8, 3), np.uint8)], r"got list of shape \[\]"),
        (torch.full((1, 3, 8, 8), 200.0), r"must be RGB in \[0, 1\]; got values from 200 to 200"),
        (-torch.ones(1, 3, 8, 8), r"got values from -1 to -1"),
        (torch.full((1, 3, 8, 8), torch.nan), r"got values from nan to nan"),
        (np.zeros((0, 8, 8, 3), np.uint8), "the clip has no frames"),
        (np.zeros((1, 0, 8, 3), np.uint8), r"got ndarray uint8 \[0, 8, 3\]"),
    ],
    ids=["one frame", "float array", "two channels", "channels last", "uint8 tensor", "list",
         "8-bit floats", "signed floats", "nan", "empty",
         "no rows"],
)  # fmt: skip
def test_clips_of_another_kind_are_refused(clip, message):
    with pytest.raises(InputError, match=message) as error:
        upscaler()(clip)
    assert "\n" not in str(error.value)


def test_frames_that_change_size_or_kind_are_refused():
    up = upscaler()
    with pytest.raises(InputError, match=r"ndarray \[8, 9, 3\] after ndarray \[8, 8, 3\]"):
        list(up.stream([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)]))
    with pytest.raises(InputError, match=r"Tensor .* after ndarray"):
        list(up.stream([np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8)]))


def test_scale_and_height_together_are_refused():
    with pytest.raises(UsageError, match="not both"):
        upscaler()(array(1), scale=2, height=40)


def test_out_of_memory_outside_the_networks_is_reported_as_such(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("psssr_fast.recovery.resize_frames", fail)
    with pytest.raises(OutOfMemory, match="window of 2 frames 32x32 on cpu"):
        upscaler()(array(2, 8, 8))


def test_networks_know_their_device_and_dtype():
    nets = networks(trained=False)
    assert (nets.device, nets.dtype) == (torch.device("cpu"), torch.float32)


def test_settings_survive_json():
    """Reports and plans store settings as JSON."""
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(settings_for("paper"))))["profile"] == "paper"
