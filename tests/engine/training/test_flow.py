"""Flow matching: targets, weights and steps by their equations and by diffusers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from defectory.engine.sampling.schedulers import FlowEuler
from defectory.engine.training.flow import FlowSchedule, schedule_of
from defectory.engine.training.noise import NoiseSchedule

SHIFT = 3.0


@pytest.fixture
def schedule() -> NoiseSchedule:
    return schedule_of(FlowMatchEulerDiscreteScheduler(shift=SHIFT), "cpu")


def test_the_scheduler_decides_which_schedule_it_is(schedule: NoiseSchedule) -> None:
    assert isinstance(schedule, FlowSchedule)
    assert type(schedule_of(DDPMScheduler(), "cpu")) is NoiseSchedule


def test_noisy_latents_and_targets_equal_the_equations(schedule: NoiseSchedule) -> None:
    clean, noise, timesteps = torch.randn(4, 4, 6, 8), torch.randn(4, 4, 6, 8), torch.tensor([0, 1, 500, 999])
    u = (timesteps + 1) / 1000
    sigma = (SHIFT * u / (1 + (SHIFT - 1) * u)).view(-1, 1, 1, 1)
    noisy, target = schedule.add(clean, noise, timesteps)
    torch.testing.assert_close(noisy, (1 - sigma) * clean + sigma * noise)
    assert torch.equal(target, noise - clean)
    torch.testing.assert_close(schedule.clean(noisy, target, timesteps), clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.times(timesteps), 1000 * sigma.flatten())
    assert torch.equal(noisy[3], noise[3])


def test_noisy_latents_and_times_equal_those_of_diffusers(schedule: NoiseSchedule) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    clean, noise, timesteps = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 6, 8), torch.tensor([0, 400, 998])
    times = schedule.times(timesteps)
    torch.testing.assert_close(times, theirs.timesteps[999 - timesteps])
    torch.testing.assert_close(schedule.add(clean, noise, timesteps)[0], theirs.scale_noise(clean, times, noise))


def test_an_euler_step_along_the_target_stays_on_the_path(schedule: NoiseSchedule) -> None:
    euler = FlowEuler(shift=SHIFT)
    euler.set_timesteps(5)
    clean, noise = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    x = noise * euler.init_noise_sigma
    for number, timestep in enumerate(euler.timesteps):
        sigma, following = euler.sigmas[number], euler.sigmas[number + 1]
        assert torch.equal(euler.scale_model_input(x, timestep), x)
        stepped = euler.step(noise - clean, timestep, x).prev_sample
        torch.testing.assert_close(stepped, x + (following - sigma) * (noise - clean))
        torch.testing.assert_close(stepped, (1 - following) * clean + following * noise, atol=1e-5, rtol=1e-5)
        if number + 1 < len(euler.timesteps):
            known = euler.add_noise(clean, noise, euler.timesteps[number + 1].expand(2))
            torch.testing.assert_close(known, stepped, atol=1e-5, rtol=1e-5)
        x = stepped
    torch.testing.assert_close(x, clean, atol=1e-5, rtol=1e-5)


def test_weights_are_the_density_of_logit_normal_sampling(schedule: NoiseSchedule) -> None:
    every = torch.arange(1000)
    weights = schedule.weight(every, gamma=5.0)
    assert math.isclose(float(weights.mean()), 1.0, rel_tol=1e-5)
    generator = torch.Generator().manual_seed(0)
    drawn = compute_density_for_timestep_sampling("logit_normal", 200_000, 0.0, 1.0, generator=generator)
    shares = torch.histogram(drawn, bins=10, range=(0.0, 1.0)).hist / len(drawn)
    torch.testing.assert_close(weights.view(10, 100).mean(dim=1) / 10, shares, atol=3e-3, rtol=0)
    assert torch.equal(schedule.weight(every, gamma=None), torch.ones(1000))


def test_an_ancestral_step_keeps_the_marginal(schedule: NoiseSchedule) -> None:
    """Of a known image, steps from pure noise give (1 - sigma) x and noise of spread sigma, whatever the stride."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((1, 1, 300, 300), 2.0)
    x = torch.randn(clean.shape, generator=generator)
    timesteps = schedule.ancestral_timesteps(4)
    assert timesteps == [999, 749, 499, 249]
    for timestep, following in itertools.pairwise(timesteps):
        noise = torch.randn(clean.shape, generator=generator)
        x = schedule.ancestral_step(x, clean, noise, timestep=timestep, following=following)
        sigma = float(schedule.times(torch.tensor([following])) / 1000)
        assert math.isclose(float(x.mean()), 2 * (1 - sigma), abs_tol=0.02)
        assert math.isclose(float(x.std()), sigma, abs_tol=0.01)


def test_ancestral_steps_of_other_schedules_equal_those_of_diffusers() -> None:
    theirs = DDPMScheduler(clip_sample=False, variance_type="fixed_small", timestep_spacing="leading")
    ours = schedule_of(theirs, "cpu")
    theirs.set_timesteps(10)
    x, predicted = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    times = torch.tensor([500, 500])
    found = ours.ancestral_step(x, ours.clean(x, predicted, times), torch.zeros_like(x), timestep=500, following=400)
    torch.manual_seed(3)
    noise = torch.randn(x.shape)
    with_noise = ours.ancestral_step(x, ours.clean(x, predicted, times), noise, timestep=500, following=400)
    torch.manual_seed(3)
    stepped = theirs.step(predicted, 500, x).prev_sample
    torch.testing.assert_close(with_noise, stepped, atol=1e-4, rtol=1e-4)
    assert not torch.equal(found, with_noise)
