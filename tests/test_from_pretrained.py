"""Loading a whole PS-SR model in the released layout, and running it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from psssr_fast import Upscaler
from psssr_fast.config import settings_for
from psssr_fast.errors import ModelError, UsageError
from psssr_fast.models.prompt import save_prompt
from psssr_fast.models.vae import WanVae
from psssr_fast.pipeline import restore_window
from psssr_fast.resize import resize_frames
from psssr_fast.runtime.vae_engine import FusedVae

GOLDEN = Path(__file__).parent / "golden"
PARTS = ("foundation_dit", "base_lora", "draft", "vae")


@pytest.fixture
def directory(tmp_path):
    """A reduced model as a user would keep it, without the prompt."""
    for part in PARTS:
        shutil.copy(GOLDEN / f"{part}.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2}))
    return tmp_path


@pytest.fixture
def complete(directory):
    embedding = torch.zeros(512, 32)
    embedding[:5] = torch.randn(5, 32)
    save_prompt(directory / "prompt.safetensors", embedding, text="sharp", encoder="test")
    return directory


def test_a_released_directory_runs_from_uint8_to_uint8(complete):
    up = Upscaler.from_pretrained(complete, attention="sdpa", dtype=torch.float32)
    clip = np.random.default_rng(0).integers(0, 256, (6, 9, 13, 3), np.uint8)
    result = up(clip)
    assert result.shape == (6, 36, 52, 3)
    picture = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    window = restore_window(up.networks, resize_frames(picture, 36, 52), up.settings)
    expected = ((window + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(result - expected).max() <= 1
    assert up.settings == settings_for("released")


@pytest.mark.parametrize(("engine", "kind"), [("plain", WanVae), ("fused", FusedVae)])
def test_the_vae_inside_is_the_golden_one(complete, engine, kind):
    loaded = Upscaler.from_pretrained(complete, engine=engine, dtype=torch.float32, device="cpu")
    networks = loaded.networks
    tensors = load_file(GOLDEN / "vae_io.safetensors")
    latents, condition = networks.codec.encode(tensors["video"])
    assert condition is None
    torch.testing.assert_close(latents, tensors["latents"], rtol=1e-4, atol=1e-4)
    assert isinstance(networks.codec.vae, kind)


def test_profiles_differ_and_each_is_deterministic(complete):
    clip = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    results = {}
    for profile in ("released", "paper"):
        up = Upscaler.from_pretrained(complete, profile=profile)
        results[profile] = up(clip)
        assert np.array_equal(results[profile], up(clip))
    assert not np.array_equal(results["released"], results["paper"])


def test_bf16_runs_close_to_fp32(complete):
    clip = torch.rand(2, 3, 8, 8)
    exact = Upscaler.from_pretrained(complete, dtype=torch.float32)(clip)
    half = Upscaler.from_pretrained(complete, dtype=torch.bfloat16)(clip)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().mean() < 0.02


def test_a_model_without_its_prompt_says_how_to_make_one(directory):
    with pytest.raises(ModelError, match=r"no prompt embedding.*psssr models encode-prompt"):
        Upscaler.from_pretrained(directory)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:7", "is not there"), ("abacus", "no such device"), ("mps", "is not supported")],
)
def test_devices_that_cannot_be_had_are_refused(device, message):
    with pytest.raises(UsageError, match=message):
        Upscaler.from_pretrained("nano", device=device)


def test_attention_that_cannot_run_is_refused_by_name():
    with pytest.raises(UsageError, match="attention='flash2' cannot run"):
        Upscaler.from_pretrained("nano", attention="flash2")
