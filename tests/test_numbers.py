"""NaN and infinity never become pictures: computed again in fp32, reported, or refused."""

import numpy as np
import pytest
import torch
from cli_fixtures import read, write_video
from model_fixtures import MODELS, SMALL, in_dtype, networks

from psssr_fast.config import settings_for
from psssr_fast.engine import fuse
from psssr_fast.errors import NotFinite
from psssr_fast.pipeline import restore_window
from psssr_fast.precision import in_float32
from psssr_fast.recovery import Recovery, ranges
from psssr_fast.upscaler import Upscaler

SETTINGS = settings_for("released", SMALL)


def upscaler(dtype=torch.bfloat16, engine="plain") -> Upscaler:
    return Upscaler(in_dtype(networks(trained=True), dtype), SETTINGS, "test", "sdpa", engine)


def spoil(module: torch.nn.Module, value: float, *, calls=None, wide: bool = False) -> None:
    """Make a module give ``value``: in its calls ``calls``, and in fp32 only if ``wide``."""
    seen = 0

    def hook(_, inputs, output):
        nonlocal seen
        if output.dtype == torch.float32 and not wide:
            return output
        seen += 1
        if calls is not None and seen not in calls:
            return output
        return torch.full_like(output, value)

    module.register_forward_hook(hook)


def inner(networks, place: str) -> torch.nn.Module:
    """A layer in the base's second block, or the codec's last."""
    if place == "codec":
        return networks.codec.drawer.draw
    block = networks.base.blocks[1]
    return block.ffn2 if hasattr(block, "ffn2") else block.ffn[2]


@pytest.mark.parametrize(
    ("engine", "place", "value"),
    [
        ("plain", "block", torch.nan),
        ("fused", "block", torch.nan),
        ("fused", "block", torch.inf),
        ("plain", "codec", -torch.inf),
    ],
)
def test_a_broken_layer_is_computed_again_in_float32(engine, place, value, tmp_path, caplog):
    clip = write_video(tmp_path / "in.mp4", frames=5, size=(24, 16))
    up = upscaler(engine=engine)
    spoil(inner(up.networks, place), value)
    report = up.upscale_video(clip, tmp_path / "out.mp4")
    assert report.warnings == (
        "numbers overflowed in bfloat16: frames 0-4 were computed again in float32",
    )
    assert [r.levelname for r in caplog.records if "overflowed" in r.getMessage()] == ["WARNING"]
    exact = Upscaler(in_float32(up.networks), SETTINGS, "test", "sdpa", "plain")
    exact.upscale_video(clip, tmp_path / "exact.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "exact.mp4").read_bytes()
    assert np.std(read(tmp_path / "out.mp4")) > 10


def test_only_windows_that_broke_are_computed_again_and_named():
    nets = in_dtype(networks(trained=True), torch.bfloat16)
    pictures = torch.rand(3, 4, 3, 32, 32) * 2 - 1
    expected = [restore_window(nets, picture, SETTINGS) for picture in pictures]
    exact = restore_window(in_float32(nets), pictures[1], SETTINGS)
    spoil(inner(nets, "block"), torch.nan, calls={2})
    recovery = Recovery(nets, SETTINGS)
    results = [recovery.restore(x, first) for x, first in zip(pictures, (0, 3, 6), strict=True)]
    assert torch.equal(results[0], expected[0]) and torch.equal(results[2], expected[2])
    assert torch.equal(results[1], exact) and not torch.equal(exact, expected[1])
    (warning,) = recovery.warnings
    assert "frames 3-6 were computed again in float32" in warning


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_no_picture_in_float32_either_is_refused_with_its_frames(dtype):
    up = upscaler(dtype)
    spoil(inner(up.networks, "block"), torch.nan, wide=True)
    with pytest.raises(NotFinite, match=r"frames 0-3: .*NaN or infinity.*psssr models") as caught:
        up(np.zeros((6, 8, 8, 3), np.uint8))
    assert caught.value.exit_code == 3 and caught.value.frames == (0, 1, 2, 3)
    assert "\n" not in str(caught.value)


def test_a_file_whose_windows_break_leaves_no_output(tmp_path):
    up = upscaler(torch.float32)
    spoil(inner(up.networks, "codec"), torch.inf, calls={4}, wide=True)
    clip = write_video(tmp_path / "in.mp4", frames=9, size=(24, 16))
    with pytest.raises(NotFinite):
        up.upscale_video(clip, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".mp4"] == ["in.mp4"]


def test_float16_that_really_overflows_is_what_float32_gives(caplog):
    """Activations of 1e5, which only float16 cannot hold."""
    nets = networks(trained=True)
    for block in nets.base.blocks:
        block.ffn[0].weight.mul_(2e5)
        block.ffn[2].weight.div_(2e5)
    nets = in_dtype(nets, torch.float16)
    picture = torch.rand(4, 3, 32, 32) * 2 - 1
    with pytest.raises(NotFinite):
        restore_window(nets, picture, SETTINGS)
    restored = Recovery(nets, SETTINGS).restore(picture)
    assert torch.equal(restored, restore_window(in_float32(nets), picture, SETTINGS))


@pytest.mark.parametrize("engine", ["plain", "fused"])
@pytest.mark.parametrize("model", MODELS)
def test_the_float32_copy_is_the_model_in_float32(model, engine):
    settings = settings_for("released")
    nets = in_dtype(MODELS[model](), torch.bfloat16)
    picture = torch.rand(5, 3, 16, 32) * 2 - 1
    expected = restore_window(in_dtype(nets, torch.float32), picture, settings)
    chosen = fuse(nets, settings.sampling) if engine == "fused" else nets
    before = restore_window(chosen, picture, settings)
    copied = in_float32(chosen)
    result = restore_window(copied, picture, settings)
    assert (result - expected).abs().max() < 0.5 * (before - expected).abs().max()
    assert torch.equal(restore_window(chosen, picture, settings), before)  # left as it was
    assert copied.dtype == torch.float32 and chosen.dtype == torch.bfloat16


def test_ranges_are_short():
    assert ranges({5, 0, 1, 2, 9, 8}) == "0-2, 5, 8-9"
