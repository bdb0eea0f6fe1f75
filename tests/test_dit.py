"""The transformer by itself: its parts against their formulas, its names and sizes, its windows."""

import json
from pathlib import Path

import pytest
import torch

from psssr_fast.models.dit import Dit, RMSNorm, rotary_angles, rotate, timestep_embedding
from psssr_fast.models.sizes import WAN_1_3B, DitSize, kept_blocks

DATA = Path(__file__).parent / "data"
TINY = DitSize(dim=48, ffn_dim=96, heads=2, layers=6, kept_blocks=(2, 5), text_dim=32, freq_dim=32)


def clip(size: DitSize, batch: int = 1, grid: tuple[int, int, int] = (2, 3, 4)) -> torch.Tensor:
    frames, height, width = grid
    return torch.randn(batch, size.in_channels, frames, 2 * height, 2 * width)


def local(window: tuple[int, int, int] | None, layers: int = 1) -> Dit:
    """A transformer without prompt whose attention sees one window, every modulation at work."""
    size = DitSize(
        dim=24, ffn_dim=32, heads=2, layers=layers, kept_blocks=(), text_dim=0, freq_dim=16,
        in_channels=4, out_channels=2, attention_window=window,
    )  # fmt: skip
    torch.manual_seed(3)
    return Dit(size).eval()


def test_full_size_names_and_shapes_are_those_of_the_released_files():
    published = json.loads((DATA / "wan21_keys.json").read_text())["dit_orig"]["keys"]
    with torch.device("meta"):
        base, draft = Dit(WAN_1_3B.dit), Dit(WAN_1_3B.dit, draft=True)
    ours = {name: list(tensor.shape) for name, tensor in base.state_dict().items()}
    published["patch_embedding.weight"] = [1536, 32, 1, 2, 2]  # widened for the condition
    assert ours == published
    assert sum(p.numel() for p in base.parameters()) == 1_419_095_104
    assert sum(p.numel() for p in draft.parameters()) == 537_482_304
    assert len(draft.state_dict()) == 305
    assert draft.fc_layers[0].weight.shape == (1536, 3072)


def test_the_draft_keeps_the_last_block_of_each_group():
    assert WAN_1_3B.dit.kept_blocks == kept_blocks(30, 10) == tuple(range(2, 30, 3))
    assert kept_blocks(30, 15) == tuple(range(1, 30, 2))
    assert kept_blocks(30, 5) == (5, 11, 17, 23, 29)
    with pytest.raises(ValueError, match="cannot be spread evenly"):
        kept_blocks(30, 7)


def test_rotary_embedding_splits_a_head_22_21_21_between_time_height_and_width():
    grid = (5, 4, 3)
    angles = rotary_angles(grid, 128, torch.device("cpu")).view(*grid, 64)
    frames, rows, columns = angles.split([22, 21, 21], dim=-1)
    for axis, (part, dim) in enumerate(((frames, 44), (rows, 42), (columns, 42))):
        position = torch.arange(grid[axis], dtype=torch.float64)
        expected = torch.outer(position, 10000 ** (-torch.arange(0, dim, 2).double() / dim))
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        torch.testing.assert_close(
            part, expected.view(shape).expand(part.shape), rtol=1e-12, atol=0
        )


def test_rotation_turns_adjacent_pairs_as_complex_numbers():
    x = torch.randn(2, 12, 3, 24)
    angles = rotary_angles((1, 3, 4), 24, x.device)[:, None]
    exact = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    exact = torch.view_as_real(exact * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    torch.testing.assert_close(rotate(x, angles.cos().float(), angles.sin().float()), exact.float())


@pytest.mark.parametrize("timestep", [700.0, 699.0, 400.0, 0.0])
def test_timestep_embedding_is_the_fp64_formula_rounded_once(timestep):
    powers = [10000 ** (-i / 128) for i in range(128)]
    angles = torch.tensor([timestep * p for p in powers], dtype=torch.float64)
    exact = torch.cat([angles.cos(), angles.sin()])[None]
    for dtype in (torch.float32, torch.bfloat16):
        embedding = timestep_embedding(torch.tensor([timestep]), 256, dtype)
        assert torch.equal(embedding, exact.to(dtype))


def test_rms_norm_reduces_over_the_full_width_in_fp32():
    norm = RMSNorm(1536, eps=1e-6)
    x = torch.randn(2, 3, 1536) * 300
    wide = x.bfloat16()
    mean = wide.double().square().mean(-1, keepdim=True)
    exact = wide.double() / (mean + 1e-6).sqrt()
    assert torch.equal(norm.bfloat16()(wide), exact.bfloat16())


def test_base_gives_the_inputs_of_the_kept_blocks():
    base = Dit(TINY).eval()
    seen = []
    for block in base.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    output = base(clip(TINY), torch.tensor([700.0]), torch.randn(1, 7, 32))
    assert len(output.features) == 2
    assert torch.equal(output.features[0], seen[2])
    assert torch.equal(output.features[1], seen[5])


def test_draft_that_lets_only_the_feature_through_is_each_kept_block_on_the_base_feature():
    base, draft = Dit(TINY).eval(), Dit(TINY, draft=True).eval()
    latents, context, time = clip(TINY), torch.randn(1, 7, 32), torch.tensor([700.0])
    outside = {k: v for k, v in base.state_dict().items() if not k.startswith("blocks.")}
    draft.load_state_dict(outside, strict=False)
    for j, i in enumerate(TINY.kept_blocks):
        draft.blocks[j].load_state_dict(base.blocks[i].state_dict())
        with torch.no_grad():
            draft.fc_layers[j].weight.zero_()[:, : TINY.dim] = torch.eye(TINY.dim)
            draft.fc_layers[j].bias.zero_()
    base_outputs, draft_outputs = {}, []
    for i, block in enumerate(base.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: base_outputs.__setitem__(i, out))
    for block in draft.blocks:
        block.register_forward_hook(lambda m, a, out: draft_outputs.append(out))

    _, features = base(latents, time, context)
    draft(torch.randn_like(latents), time, context, features)

    assert len(draft_outputs) == 2
    torch.testing.assert_close(draft_outputs[0], base_outputs[2])
    torch.testing.assert_close(draft_outputs[1], base_outputs[5])


def test_feature_comes_before_the_hidden_state_in_the_draft():
    draft = Dit(TINY, draft=True).eval()
    features = torch.randn(2, 1, 24, TINY.dim).unbind()
    seen = []
    draft.fc_layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    draft(clip(TINY), torch.tensor([600.0]), torch.randn(1, 7, 32), features)
    assert torch.equal(seen[0][..., : TINY.dim], features[0])


def test_bf16_keeps_the_residual_stream_in_bf16():
    base = Dit(TINY).eval().bfloat16()
    time = torch.tensor([700.0], dtype=torch.bfloat16)
    output = base(clip(TINY).bfloat16(), time, torch.randn(1, 7, 32).bfloat16())
    assert output.velocity.dtype == output.features[0].dtype == torch.bfloat16


def test_a_batch_is_its_clips_one_by_one():
    for model, context in ((Dit(TINY).eval(), torch.randn(2, 7, 32)), (local((2, 2, 3), 2), None)):
        latents, time = clip(model.size, batch=2, grid=(3, 5, 4)), torch.tensor([700.0, 650.0])
        both = model(latents, time, context).velocity
        for i in range(2):
            part = None if context is None else context[i : i + 1]
            alone = model(latents[i : i + 1], time[i : i + 1], part).velocity
            torch.testing.assert_close(both[i : i + 1], alone)


@pytest.mark.parametrize("layers", [1, 2], ids=["plain", "shifted"])
def test_a_window_as_large_as_the_clip_is_full_attention(layers):
    full, windowed = local(None, layers), local((3, 5, 4), layers)
    latents, time = clip(full.size, grid=(3, 5, 4)), torch.tensor([700.0])
    torch.testing.assert_close(windowed(latents, time).velocity, full(latents, time).velocity)


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 5, 7), (4, 4, 6), (5, 2, 9)], ids=str)
@pytest.mark.parametrize("layers", [1, 2], ids=["plain", "shifted"])
def test_windows_see_their_own_tokens_and_no_others(grid, layers):
    """Against full attention with a mask built token by token from the definition."""
    window = (2, 2, 3)
    windowed, full = local(window, layers), local(None, layers)
    calls = []

    def masked(q, k, v, mask):
        shifted = len(calls) % 2 == 1
        calls.append(mask)
        places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, 3)
        length = torch.tensor([min(n, w) for n, w in zip(grid, window, strict=True)])
        moves = (torch.tensor(grid) > length) & shifted
        number = (places + moves * (length // 2)).div(length, rounding_mode="floor")
        same = (number[:, None] == number[None]).all(-1)
        heads = [x.transpose(1, 2) for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=same)
        return out.transpose(1, 2)

    full.attention = masked
    latents, time = clip(full.size, grid=grid), torch.tensor([700.0])
    torch.testing.assert_close(windowed(latents, time).velocity, full(latents, time).velocity)
    assert len(calls) == layers
