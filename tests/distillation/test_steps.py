"""Steps of teacher and student, against diffusers and against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from defectory.distillation.config import DistillationConfig
from defectory.distillation.learn import spans_of
from defectory.distillation.steps import (
    IMAGE,
    Span,
    Steps,
    boundary_scalings,
    consistency_errors,
    consistency_spans,
    trajectory_errors,
    trajectory_spans,
)
from defectory.engine.backbones.load import load_base
from defectory.engine.sampling.schedulers import make_student_scheduler, set_timesteps
from defectory.engine.training.noise import NoiseSchedule

SHAPE = (2, 4, 6, 10)
each_prediction = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])


def scheduler_of(prediction_type: Any, **settings: Any) -> Any:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=prediction_type == "v_prediction",
        **settings,
    )


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def exact_prediction(steps: Steps, schedule: NoiseSchedule, x: torch.Tensor, image: torch.Tensor, t: int) -> Any:
    """What a network predicts that knows the only image there is."""
    a, s = steps.scales(t)
    noise = (x - a * image) / s
    return noise if schedule.prediction_type == "epsilon" else a * noise - s * image


@each_prediction
@pytest.mark.parametrize("num_steps", [2, 4, 5])
def test_a_step_is_that_of_ddim_in_diffusers(prediction_type: str, num_steps: int) -> None:
    scheduler = scheduler_of(prediction_type)
    scheduler.set_timesteps(num_steps)
    steps, x, predicted = Steps(NoiseSchedule(scheduler, "cpu")), numbers(0), numbers(1)
    spans = trajectory_spans(1000, num_inference_steps=num_steps, teacher_inference_steps=4 * num_steps)
    assert [span.start for span in spans] == scheduler.timesteps.tolist()
    for span in spans:
        expected = scheduler.step(predicted, torch.tensor(span.start), x).prev_sample
        torch.testing.assert_close(steps.ddim(x, predicted, span.start, span.end), expected, atol=2e-4, rtol=1e-4)


def test_spans_join_from_noise_to_image_and_their_steps_get_shorter() -> None:
    spans = trajectory_spans(1000, num_inference_steps=4, teacher_inference_steps=18)
    assert spans[0].start == 999
    assert spans[-1].end == IMAGE
    assert [span.end for span in spans[:-1]] == [span.start for span in spans[1:]]
    # 18 steps are not divisible by 4: each span has 5
    assert {len(span.timesteps) for span in spans} == {6}
    lengths = [a - b for span in spans for a, b in zip(span.timesteps, span.timesteps[1:], strict=False)]
    assert lengths[-1] < lengths[0] / 4
    assert all(length > 0 for length in lengths)
    # no more steps than there are timesteps
    tiny = trajectory_spans(10, num_inference_steps=2, teacher_inference_steps=100)
    assert [a - b for span in tiny for a, b in zip(span.timesteps, span.timesteps[1:], strict=False)] == [1] * 10


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_lcm_draws_at_timesteps_that_the_student_has_seen(tiny_base_folder: Path, num_steps: int) -> None:
    scheduler = make_student_scheduler(load_base(tiny_base_folder), "consistency", teacher_inference_steps=20)
    set_timesteps(scheduler, num_steps, "cpu")
    config = DistillationConfig(method="consistency", num_inference_steps=num_steps, teacher_inference_steps=20)
    spans = spans_of(config, 1000)
    assert len(spans) == 20
    assert set(scheduler.timesteps.tolist()) <= {span.start for span in spans}
    assert spans == consistency_spans(1000, teacher_inference_steps=20)
    assert spans[-1] == Span(timesteps=(49, IMAGE))


@pytest.mark.parametrize("timestep", [0, 1, 19, 499, 999])
def test_boundary_scalings_are_those_of_lcm(timestep: int) -> None:
    skip, out = boundary_scalings(timestep)
    assert (skip, out) == pytest.approx(LCMScheduler().get_scalings_for_boundary_condition_discrete(timestep))
    assert skip == pytest.approx(0.25 / (100 * timestep**2 + 0.25))
    assert skip + out**2 == pytest.approx(1.0)


@each_prediction
def test_an_image_is_consistent_with_itself(prediction_type: str) -> None:
    steps, x = Steps(NoiseSchedule(scheduler_of(prediction_type), "cpu")), numbers(2)
    assert torch.equal(steps.consistent(x, numbers(3), IMAGE), x)
    a, s = steps.scales(IMAGE)
    assert (float(a), float(s)) == (1.0, 0.0)


@each_prediction
@pytest.mark.parametrize("method", ["trajectory", "consistency"])
def test_of_a_single_image_all_steps_lead_to_it(prediction_type: str, method: str) -> None:
    schedule = NoiseSchedule(scheduler_of(prediction_type), "cpu")
    steps, image, noise = Steps(schedule), numbers(4), numbers(5)
    spans = spans_of(DistillationConfig(method=method, teacher_inference_steps=20), 1000)  # pyright: ignore[reportArgumentType]
    for span in spans:
        a, s = steps.scales(span.start)
        x = a * image + s * noise
        end = steps.solve(x, span, lambda x, t: exact_prediction(steps, schedule, x, image, t))
        a, s = steps.scales(span.end)
        torch.testing.assert_close(end, a * image + s * noise, atol=1e-3, rtol=1e-3)
        if method == "trajectory":
            torch.testing.assert_close(steps.leading_to(end, x, span), image, atol=5e-3, rtol=5e-3)


@each_prediction
def test_one_step_to_the_target_ends_where_the_teacher_ends(prediction_type: str) -> None:
    schedule = NoiseSchedule(scheduler_of(prediction_type), "cpu")
    steps, x = Steps(schedule), numbers(6)
    for span in trajectory_spans(1000, num_inference_steps=4, teacher_inference_steps=12):
        # a teacher that bends: what it predicts depends on where it is
        end = steps.solve(x, span, lambda x, t: torch.tanh(x) * (1 + t / 1000))
        target = steps.leading_to(end, x, span)
        predicted = exact_prediction(steps, schedule, x, target, span.start)
        torch.testing.assert_close(steps.ddim(x, predicted, span.start, span.end), end, atol=2e-3, rtol=1e-3)


def test_errors_have_their_closed_forms() -> None:
    clean, target, sigma = torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor(0.5)
    assert trajectory_errors(clean, target, sigma).item() == pytest.approx(16.0)
    # as the velocity's: v = (a x - x') / s
    a, x = (1 - sigma**2).sqrt(), torch.tensor([0.7])
    v, wanted = (a * x - clean) / sigma, (a * x - target) / sigma
    assert (v - wanted).square().item() == pytest.approx(16.0)
    assert consistency_errors(clean, target).item() == pytest.approx((4 + 1e-6) ** 0.5 - 1e-3)
    assert consistency_errors(clean, clean).item() == 0.0


def test_a_student_with_more_steps_than_its_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to save"):
        DistillationConfig(num_inference_steps=8, teacher_inference_steps=4)
