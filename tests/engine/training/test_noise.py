from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from defectory.engine.training.noise import NoiseSchedule, generator_of, stratified_timesteps
from defectory.errors import WeightsError


def schedule_of(prediction_type: str, *, zero_snr: bool) -> tuple[NoiseSchedule, DDPMScheduler]:
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
    }
    scheduler = DDIMScheduler(**settings, rescale_betas_zero_snr=zero_snr)
    return NoiseSchedule(scheduler, "cpu"), DDPMScheduler.from_config(scheduler.config)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noisy_latents_and_targets_equal_those_of_diffusers(prediction_type: str) -> None:
    ours, theirs = schedule_of(prediction_type, zero_snr=prediction_type == "v_prediction")
    clean, noise = torch.randn(4, 4, 6, 8), torch.randn(4, 4, 6, 8)
    timesteps = torch.tensor([0, 1, 500, 999])
    noisy, target = ours.add(clean, noise, timesteps)
    # diffusers keeps a little signal at the last step of a zero-SNR schedule in DDPM; compare where both mean the same
    rows = slice(0, 3)
    assert torch.allclose(noisy[rows], theirs.add_noise(clean, noise, timesteps)[rows], atol=1e-5)
    expected = noise if prediction_type == "epsilon" else theirs.get_velocity(clean, noise, timesteps)
    assert torch.allclose(target[rows], expected[rows], atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noisy_latents_and_targets_equal_the_equation_bit_for_bit(prediction_type: str, zero_snr: bool) -> None:
    ours, _ = schedule_of(prediction_type, zero_snr=zero_snr)
    clean, noise, timesteps = torch.randn(1000, 4, 3, 5), torch.randn(1000, 4, 3, 5), torch.arange(1000)
    a = ours.alpha_bar.sqrt().view(-1, 1, 1, 1)
    s = (1 - ours.alpha_bar).sqrt().view(-1, 1, 1, 1)
    noisy, target = ours.add(clean, noise, timesteps)
    assert torch.equal(noisy, a * clean + s * noise)
    assert torch.equal(target, noise if prediction_type == "epsilon" else a * noise - s * clean)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_noise_is_added_alike_whichever_scheduler_the_base_names(name: str) -> None:
    settings: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    schedules = [NoiseSchedule(getattr(diffusers, kind)(**settings), "cpu") for kind in ("DDIMScheduler", name)]
    clean, noise = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    first, second = (schedule.add(clean, noise, torch.tensor([3, 800]))[0] for schedule in schedules)
    assert torch.equal(first, second)


def test_terminal_step_of_a_zero_snr_schedule_is_pure_noise_and_asks_for_the_image() -> None:
    ours, _ = schedule_of("v_prediction", zero_snr=True)
    clean, noise = torch.randn(1, 4, 6, 8), torch.randn(1, 4, 6, 8)
    noisy, target = ours.add(clean, noise, torch.tensor([999]))
    assert torch.allclose(noisy, noise)
    assert torch.allclose(target, -clean)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_clean_latents_come_back_from_a_perfect_prediction(prediction_type: str) -> None:
    ours, _ = schedule_of(prediction_type, zero_snr=prediction_type == "v_prediction")
    clean, noise = torch.randn(4, 4, 6, 8), torch.randn(4, 4, 6, 8)
    timesteps = torch.tensor([0, 1, 500, 900])
    noisy, target = ours.add(clean, noise, timesteps)
    assert torch.allclose(ours.clean(noisy, target, timesteps), clean, atol=1e-4)


def test_min_snr_weights_equal_the_closed_form() -> None:
    timesteps = torch.tensor([1, 100, 400, 700, 998])
    for prediction_type in ("epsilon", "v_prediction"):
        ours, _ = schedule_of(prediction_type, zero_snr=False)
        alpha_bar = ours.alpha_bar[timesteps]
        snr = alpha_bar / (1 - alpha_bar)
        bounded = torch.minimum(snr, torch.tensor(5.0))
        expected = bounded / snr if prediction_type == "epsilon" else bounded / (snr + 1)
        assert torch.allclose(ours.weight(timesteps, gamma=5.0), expected, rtol=1e-4)
        assert ours.weight(timesteps, gamma=None).tolist() == [1.0] * 5


def test_weights_stay_finite_at_zero_terminal_snr_and_the_floor_lifts_v_alone() -> None:
    last = torch.tensor([999])
    v, _ = schedule_of("v_prediction", zero_snr=True)
    epsilon, _ = schedule_of("epsilon", zero_snr=True)
    assert v.weight(last, gamma=5.0).item() == 0
    assert v.weight(last, gamma=5.0, floor=0.25).item() == 0.25
    assert epsilon.weight(last, gamma=5.0, floor=0.25).item() == 1


def test_one_timestep_falls_in_each_stratum() -> None:
    timesteps = stratified_timesteps(8, 1000, generator_of(3, "x"))
    assert sorted((timesteps // 125).tolist()) == list(range(8))
    assert stratified_timesteps(1, 1000, generator_of(1)).shape == (1,)


def test_generators_repeat_for_equal_keys_alone() -> None:
    draws = [
        torch.rand(3, generator=generator_of(*key)).tolist()
        for key in ((0, "a", 1), (0, "a", 1), (0, "a", 2), (1, "a", 1))
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] != draws[3]


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(WeightsError, match="predicts sample"):
        NoiseSchedule(DDIMScheduler(prediction_type="sample"), "cpu")
