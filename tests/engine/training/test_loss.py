from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from defectory.engine.backbones.embeddings import PromptEmbeddings
from defectory.engine.backbones.sd1.model import load_stable_diffusion
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.loss import Batch, denoising_errors
from defectory.engine.training.noise import NoiseSchedule

SCHEDULE = NoiseSchedule(DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), "cpu")


def batch() -> Batch:
    defect = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    defect[0, 0, 2, 3:7] = True
    clean, noise = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    return Batch(clean=clean, noise=noise, timesteps=torch.tensor([300, 999]), prompts=["a", "b"], defect=defect)


def test_errors_equal_the_closed_form() -> None:
    given = batch()
    config = TrainingConfig(
        mixed_precision="no", defect_weight=5.0, defect_margin=0, min_snr_gamma=5.0, min_snr_floor=0.25
    )
    errors = denoising_errors(given, lambda noisy, _t: noisy * 0, SCHEDULE, config)
    plain = denoising_errors(given, lambda noisy, _t: noisy * 0, SCHEDULE, config, weighted=False)
    for row, timestep in enumerate((300, 999)):
        bar = float(SCHEDULE.alpha_bar[timestep])
        squared = (bar**0.5 * given.noise[row] - (1 - bar) ** 0.5 * given.clean[row]).square()
        snr = bar / (1 - bar)
        weight = max(min(snr, 5.0) / (snr + 1), 0.25)
        assert float(plain[row]) == pytest.approx(float(squared.mean()), rel=1e-5)
        assert float(errors[row]) == pytest.approx(
            weight * float((squared * (1 + 4 * given.defect[row])).mean()), rel=1e-5
        )


def test_what_lies_next_to_a_defect_weighs_as_much() -> None:
    given = batch()
    config = TrainingConfig(
        mixed_precision="no", defect_weight=5.0, defect_margin=1, min_snr_gamma=5.0, min_snr_floor=0.25
    )
    plain = config.model_copy(update={"defect_weight": 1.0})
    heavier = denoising_errors(given, lambda noisy, _t: noisy * 0, SCHEDULE, config) - denoising_errors(
        given, lambda noisy, _t: noisy * 0, SCHEDULE, plain
    )
    bar = float(SCHEDULE.alpha_bar[300])
    squared = (bar**0.5 * given.noise[0] - (1 - bar) ** 0.5 * given.clean[0]).square()
    weight = max(min(bar / (1 - bar), 5.0) * (1 - bar), 0.25)
    near = torch.zeros(6, 8)
    near[1:4, 2:8] = 1  # the defect is row 2, columns 3 to 6
    assert float(heavier[0]) == pytest.approx(weight * float((4 * squared * near).mean()), rel=1e-5)
    assert float(heavier[1]) == 0


def test_perfect_prediction_has_no_error() -> None:
    given = batch()
    _, target = SCHEDULE.add(given.clean, given.noise, given.timesteps)
    assert denoising_errors(given, lambda _x, _t: target, SCHEDULE, TrainingConfig(mixed_precision="no")).tolist() == [
        0.0,
        0.0,
    ]


def test_frozen_text_is_encoded_once_and_trained_text_every_time(tiny_base_folder: Any) -> None:
    models = load_stable_diffusion(tiny_base_folder)
    calls: list[int] = []
    models.text_encoder.register_forward_hook(lambda _m, _a, result: calls.append(len(result.last_hidden_state)))
    prompts = ["a crack", "", "a crack"]
    frozen = PromptEmbeddings(models)
    first, second = frozen(prompts).tokens, frozen(prompts).tokens
    assert first.shape == (3, 16, 64)
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[2])
    assert not torch.allclose(first[0], first[1])
    assert calls == [1, 1]
    models.text_encoder.requires_grad_(True)
    trained = PromptEmbeddings(models)
    again = trained(prompts).tokens
    trained(prompts)
    assert calls == [1, 1, 2, 2]
    assert again.requires_grad
    assert torch.allclose(again, first, atol=1e-5)


def test_gradient_of_shared_prompts_is_the_same_every_time_on_several_threads(tiny_base_folder: Any) -> None:
    models = load_stable_diffusion(tiny_base_folder)
    models.text_encoder.requires_grad_(True)
    embed = PromptEmbeddings(models)
    prompts = ["a crack", "", "a hole"] * 200
    weight = torch.randn(len(prompts), 16, 64, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients: list[torch.Tensor] = []
        for _ in range(12):
            models.text_encoder.zero_grad()
            (embed(prompts).tokens * weight).sum().backward()
            gradients.append(models.text_encoder.get_input_embeddings().weight.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
