"""One window through the networks: what is computed, and in which reading of the method."""

from dataclasses import replace

import pytest
import torch
from model_fixtures import networks

from psssr_fast.config import FrequencyUpdate, Sampling, Settings, settings_for
from psssr_fast.errors import OutOfMemory
from psssr_fast.ops.frequency_update import frequency_update_ref
from psssr_fast.pipeline import restore_window
from psssr_fast.sampling import base_step, draft_steps, make_schedule


def picture(frames: int = 3, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(frames, 3, height, width) * 2 - 1


def decoded_steps(nets, x):
    """Every step's picture in [0, 1], by the sampler and the codec alone."""
    sampling = Sampling()
    schedule = make_schedule(sampling)
    latents, condition = nets.codec.encode(x.transpose(0, 1)[None])
    first, features = base_step(nets.base, latents, None, schedule)
    later = draft_steps(nets.draft, first.next_latents, latents, features, None, schedule, sampling)
    estimates = [step.estimate for step in (first, *later)]
    pictures = [
        nets.codec.decode(z, condition, (index > 0,))[0].transpose(0, 1)
        for index, z in enumerate(estimates)
    ]
    return [p.clamp(-1, 1).add(1).div(2) for p in pictures]


def test_released_updates_the_base_once_with_the_last_draft():
    nets, x, settings = networks(trained=True), picture(), settings_for("released")
    base, *_, last = decoded_steps(nets, x)
    expected = frequency_update_ref(base, last, settings.frequency_update) * 2 - 1
    torch.testing.assert_close(restore_window(nets, x, settings), expected)


def test_paper_updates_after_every_draft_step():
    nets, x, settings = networks(trained=True), picture(), settings_for("paper")
    result, *drafts = decoded_steps(nets, x)
    for draft in drafts:
        result = frequency_update_ref(result, draft, settings.frequency_update)
    torch.testing.assert_close(restore_window(nets, x, settings), result * 2 - 1)


def test_with_one_draft_step_iterating_changes_nothing():
    nets, x = networks(trained=True), picture()
    sampling = Sampling(timesteps=(699.0, 599.0))
    once = Settings(sampling=sampling, frequency_update=FrequencyUpdate(iterate=False))
    iterated = replace(once, frequency_update=FrequencyUpdate(iterate=True))
    assert torch.equal(restore_window(nets, x, once), restore_window(nets, x, iterated))


def test_one_timestep_gives_the_bases_picture():
    nets, x = networks(trained=True), picture()
    alone = restore_window(nets, x, Settings(sampling=Sampling(timesteps=(699.0,))))
    torch.testing.assert_close(alone, decoded_steps(nets, x)[0] * 2 - 1)


def test_strength_zero_gives_the_bases_picture():
    nets, x = networks(trained=True), picture()
    settings = Settings(frequency_update=FrequencyUpdate(strength=0.0))
    torch.testing.assert_close(restore_window(nets, x, settings), decoded_steps(nets, x)[0] * 2 - 1)


def test_released_rounding_truncates_both_pictures_to_8_bits_first():
    nets, x = networks(trained=True), picture()
    settings = Settings(released_rounding=True)
    base, *_, last = ((p * 255).floor() / 255 for p in decoded_steps(nets, x))
    expected = frequency_update_ref(base, last, settings.frequency_update) * 2 - 1
    torch.testing.assert_close(restore_window(nets, x, settings), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 33), (5, 16, 16)], ids=str)
def test_any_size_is_padded_and_cropped(shape):
    nets, x = networks(trained=False), picture(*shape)
    settings = Settings(frequency_update=FrequencyUpdate())
    torch.testing.assert_close(restore_window(nets, x, settings), x)


def test_two_runs_are_bit_identical():
    nets, x, settings = networks(trained=True), picture(), settings_for("released")
    assert torch.equal(restore_window(nets, x, settings), restore_window(nets, x, settings))


def test_the_window_is_not_written_to():
    nets, x = networks(trained=False), picture(2, 16, 16)
    before = x.clone()
    restore_window(nets, x, settings_for("released"))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_says_the_window_and_the_remedy(monkeypatch, error):
    nets = networks(trained=False)

    def fail(*_):
        raise error

    monkeypatch.setattr(nets.codec, "encode", fail)
    message = r"window of 3 frames 48x32 on cpu.*--window"
    with pytest.raises(OutOfMemory, match=message):
        restore_window(nets, picture(), settings_for("released"))


def test_other_runtime_errors_are_not_hidden(monkeypatch):
    nets = networks(trained=False)

    def fail(*_):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(nets.codec, "encode", fail)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        restore_window(nets, picture(), settings_for("released"))
