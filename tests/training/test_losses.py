"""Losses against their formulas, and what following their gradients leads to."""

import pytest
import torch
from torch.nn import functional as F

from psssr_fast.errors import UsageError
from psssr_fast.training import losses
from psssr_fast.training.perceptual import open_lpips
from psssr_fast.training.recipe import default_recipe

SHAPE = (4, 2, 1, 3, 3)


def gaussian(mean, deviation):
    """The exact velocity ``E[eps - z | z_t]`` where latents are normal."""

    def velocity(noisy, timestep):
        sigma = (timestep / 1000).to(noisy).view(-1, 1, 1, 1, 1)
        variance = ((1 - sigma) * deviation) ** 2 + sigma**2
        gain = (noisy - (1 - sigma) * mean) / variance
        return sigma * gain - (mean + (1 - sigma) * deviation**2 * gain)

    return velocity


def test_noise_is_mixed_in_the_direction_of_the_scheduler():
    latents, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    timestep = torch.tensor([1e-9, 250.0, 700.0, 1000.0])
    mixed = losses.add_noise(latents, noise, timestep)
    torch.testing.assert_close(mixed[0], latents[0])
    torch.testing.assert_close(mixed[1], 0.75 * latents[1] + 0.25 * noise[1])
    torch.testing.assert_close(mixed[3], noise[3])


def test_the_gradient_of_vsd_is_equation_8():
    estimate = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(SHAPE, dtype=torch.float64)
    timestep = torch.tensor([100.0, 400.0, 600.0, 900.0])
    teacher, student = gaussian(1.0, 0.5), gaussian(-0.3, 0.8)
    losses.vsd_loss(estimate, teacher, student, noise, timestep).backward()
    noisy = losses.add_noise(estimate.detach(), noise, timestep)
    sigma = (timestep / 1000).double().view(-1, 1, 1, 1, 1)
    v = teacher(noisy, timestep)
    scale = (estimate.detach() - noisy + sigma * v).abs().mean((1, 2, 3, 4), keepdim=True)
    expected = sigma * (v - student(noisy, timestep)) / scale / estimate.numel()
    torch.testing.assert_close(estimate.grad, expected)


def test_vsd_pushes_nothing_when_the_student_is_as_the_teacher():
    estimate = torch.randn(SHAPE, requires_grad=True)
    same = gaussian(0.2, 0.7)
    losses.vsd_loss(estimate, same, same, torch.randn(SHAPE), torch.full((4,), 500.0)).backward()
    assert not estimate.grad.any()


def test_following_vsd_moves_results_to_what_the_teacher_knows():
    mean = torch.full(SHAPE, -2.0).requires_grad_()  # a student that only makes noise about it
    optimizer = torch.optim.Adam([mean], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        made = mean + 0.5 * torch.randn(SHAPE, generator=generator)
        noise = torch.randn(SHAPE, generator=generator)
        timestep = torch.rand(4, generator=generator) * 960 + 20
        student = gaussian(mean.detach(), 0.5)  # a regulariser that follows exactly
        optimizer.zero_grad()
        losses.vsd_loss(made, gaussian(1.0, 0.5), student, noise, timestep).backward()
        optimizer.step()
    assert (mean - 1).abs().max() < 0.1


def test_denoising_is_least_at_the_true_velocity():
    generator = torch.Generator().manual_seed(0)
    latents = 1 + 0.5 * torch.randn(2000, 1, 1, 1, 1, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    timestep = torch.full((2000,), 600.0)
    values = [
        float(losses.denoising_loss(latents, gaussian(mean, 0.5), noise, timestep))
        for mean in (0.6, 1.0, 1.4)
    ]
    assert values[1] < min(values[0], values[2])


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert float(losses.discriminator_loss(real, fake)) == pytest.approx(0.25 + 0.5)
    assert float(losses.adversarial_loss(fake)) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(20, 20), (3, 5), (1, 1)])
def test_the_discriminator_learns_to_tell_and_takes_any_size(size):
    torch.manual_seed(0)
    judge = losses.Discriminator(2, 4)
    shape = (2, 2, 3, *size)
    assert judge(torch.randn(shape)).shape[0] == 6  # frame by frame
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = losses.discriminator_loss(
            judge(1 + 0.1 * torch.randn(shape)), judge(-1 + 0.1 * torch.randn(shape))
        )
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2


def test_the_perceptual_loss_is_lpips_of_every_frame():
    class Distance(torch.nn.Module):
        def forward(self, result, truth):
            assert result.shape == (6, 3, 16, 16) and 0 <= truth.min() <= truth.max() <= 1
            return (result - truth).square().mean((1, 2, 3))

    picture, truth = torch.rand(2, 3, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 3, 16, 16) * 2 - 1
    found = losses.perceptual_loss(picture, truth, Distance())
    torch.testing.assert_close(found, F.mse_loss(picture, truth) / 4)


def test_lpips_without_named_weights_is_refused():
    with pytest.raises(UsageError, match="name them with --lpips FILE"):
        open_lpips(default_recipe("nano"), torch.device("cpu"))
