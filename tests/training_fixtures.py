"""Material, recipes and reduced models for the tests of training."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from psssr_fast.models.prompt import PROMPT_KEY
from psssr_fast.models.sizes import WAN_1_3B, DitSize, ModelSize, VaeSize, resized
from psssr_fast.training.data import Batch, ClipShape
from psssr_fast.training.recipe import Recipe, Steps, Weights, default_recipe

TESTS = Path(__file__).parent
SMALL_WAN = resized(
    WAN_1_3B,
    DitSize(dim=48, ffn_dim=96, heads=2, layers=6, kept_blocks=(2, 5), text_dim=32, freq_dim=32),
    VaeSize(dim=4),
)  # that of the golden tensors


def wan_directory(folder: Path) -> Path:
    """Wan2.1's transformer and VAE at a reduced size, with a prompt: what training starts from."""
    for name in ("foundation_dit", "vae"):
        shutil.copyfile(TESTS / f"golden/{name}.safetensors", folder / f"{name}.safetensors")
    prompt = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    save_file({PROMPT_KEY: prompt}, folder / "prompt.safetensors")
    (folder / "config.json").write_text('{"num_heads": 2}')
    return folder


def wan_recipe(start: Path, **changes: object) -> Recipe:
    """One step of each stage of the full-size recipe, on clips of 5 frames 32x32."""
    recipe = Recipe(
        size=WAN_1_3B.name,
        steps=Steps(base=1, pixel=1, draft=1),
        weights=Weights(lpips=0),
        clips=ClipShape(frames=5, size=32),
        batch=2,
        lora_rank=4,
        regulariser_rank=4,
        precision="fp32",
        crop_latents=2,
        crop_frames=2,
        discriminator=4,
        gradient_checkpointing=False,
        start=str(start),
    )
    return replace(recipe, **changes)


def nano_recipe(**changes: object) -> Recipe:
    """A few steps of every stage of ``nano``, on two frames 32x32."""
    recipe = replace(
        default_recipe("nano"),
        steps=Steps(codec=3, teacher=3, base=4, pixel=3, draft=4),
        weights=Weights(lpips=0),
        clips=ClipShape(frames=2, size=32),
        batch=2,
        regulariser_rank=4,
        precision="fp32",
        crop_latents=2,
        crop_frames=2,
        discriminator=4,
    )
    return replace(recipe, **changes)


def random_batch(recipe: Recipe, seed: int = 0, first: int = 0) -> Batch:
    """Clips of noise."""
    clips = recipe.clips
    shape = (recipe.batch, 3, clips.frames, clips.size, clips.width)
    generator = torch.Generator().manual_seed(seed)
    high = torch.rand(shape, generator=generator) * 2 - 1
    low = (high + 0.2 * torch.randn(shape, generator=generator)).clamp(-1, 1)
    return Batch(high, low, tuple(range(first, first + recipe.batch)))


def reduced(recipe: Recipe) -> ModelSize | None:
    """The size that a test's recipe is for."""
    return SMALL_WAN if recipe.size == WAN_1_3B.name else None
