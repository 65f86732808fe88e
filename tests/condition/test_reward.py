"""The fidelity reward: its closed form, which tiles get it, and a training with it that is left and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from defectory.artifacts.weights import Concept
from defectory.condition.config import ConditionConfig
from defectory.condition.learn import learn_condition
from defectory.condition.reward import FidelityReward, dice_losses
from defectory.engine.backbones.save import save_base_like
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.loss import Batch, Counterparts, Denoised
from defectory.engine.training.noise import NoiseSchedule
from defectory.files import digest_folder

Tiles = Callable[..., list[Any]]


def patch(height: int = 9, width: int = 13) -> torch.Tensor:
    defect = torch.zeros(1, 1, height, width, dtype=torch.bool)
    defect[..., 3:5, 4:9] = True
    return defect


def test_a_difference_that_is_the_mask_has_the_least_loss() -> None:
    defect = patch()
    n = int(defect.sum())
    exact = float(dice_losses(defect.float() * 7.0, defect))
    assert exact == pytest.approx(1 - (4 / 3 * n + 1) / (2 / 3 * n + n + 1), abs=1e-6)
    everywhere = float(dice_losses(torch.full(defect.shape, 7.0), defect))
    half = defect.float().clone()
    half[..., :6] = 0
    assert exact < float(dice_losses(half, defect))
    assert exact < everywhere


def test_strength_and_the_pixels_beside_the_mask_do_not_count() -> None:
    defect, generator = patch(), torch.Generator().manual_seed(0)
    difference = torch.rand(defect.shape, generator=generator)
    loss = dice_losses(difference, defect)
    torch.testing.assert_close(dice_losses(difference * 30, defect), loss)
    beside = difference.clone()
    beside[..., 2, 3:10] += 5  # the row above the mask
    torch.testing.assert_close(dice_losses(beside, defect), loss)


def test_gradient_raises_differences_under_the_mask_and_lowers_those_beyond() -> None:
    defect = patch()
    difference = torch.full(defect.shape, 0.5, requires_grad=True)
    dice_losses(difference, defect).sum().backward()
    assert difference.grad is not None
    assert bool((difference.grad[defect] < 0).all())
    assert bool((difference.grad[..., 7:, :] > 0).all())


def test_only_tiles_with_a_defect_and_little_noise_get_it() -> None:
    schedule = NoiseSchedule(DDIMScheduler(num_train_timesteps=100, prediction_type="v_prediction"), "cpu")
    defect = torch.cat([patch(), patch(), torch.zeros_like(patch())])
    noise = torch.randn(3, 4, 9, 13, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([10, 90, 10])
    seen: list[tuple[list[str], int]] = []

    def predict(given: Counterparts, noisy: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        seen.append((list(given.prompts), int(given.drivers[0, 0, 0, 0])))
        return torch.zeros_like(noisy)

    reward = FidelityReward(weight=2.0, max_timestep=40, schedule=schedule, predict=predict, mixed_precision="no")
    drivers = torch.arange(3, dtype=torch.uint8)[:, None, None, None].repeat(1, 18, 26, 3)
    batch = Batch(
        clean=noise,
        noise=noise,
        timesteps=timesteps,
        prompts=["x", "y", "z"],
        defect=defect,
        without=Counterparts(prompts=["a", "b", "c"], drivers=drivers),
    )
    predicted = torch.full_like(noise, 0.5)
    denoised = Denoised(noisy=noise, timesteps=timesteps, target=noise, predicted=predicted)
    # under v-prediction the clean images of two predictions differ by sigma times their difference
    sigma = float((1 - schedule.alpha_bar[10]).sqrt())
    expected = 2.0 * float(dice_losses(torch.full((1, 1, 9, 13), sigma * 0.5), patch())) / 3
    assert float(reward(batch, denoised)) == pytest.approx(expected, rel=1e-4)
    assert seen == [(["a"], 0)]
    late = Batch(**{**vars(batch), "timesteps": torch.tensor([90, 90, 10])})
    assert float(reward(late, denoised)) == 0


def make_driver(image: Any, instances: Sequence[Any], _valid_hw: Any, blind: Sequence[Any] | None = None) -> Any:
    driver = (image // 5).astype(np.uint8)
    for mask in [mask for _, mask in instances] if blind is None else blind:
        driver[mask] = 9
    for category_id, mask in instances:
        driver[mask] = ((255, 0, 0), (0, 255, 0))[category_id - 1]
    return driver


def config_of(weight: float) -> ConditionConfig:
    training = TrainingConfig(
        num_steps=6, batch_size=4, variants_per_image=2, warmup_steps=1, checkpoint_every=2, learning_rate=1e-3
    )
    return ConditionConfig(
        fidelity_reward=weight, fidelity_reward_start=0.5, fidelity_reward_max_noise=1, training=training
    )


@pytest.fixture(scope="module")
def concept(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("concept")
    save_base_like(tiny_base_folder, out / "base", replaced={})
    digest = digest_folder(out / "base")
    Concept(
        method="dreambooth",
        instance_token="sks",
        class_noun="surface",
        tone_words=True,
        base_digest="b",
        weights_digest=digest,
    ).save(out / "concept.json")
    return out


def learn(tiles: list[Any], concept: Path, out: Path, weight: float, *, leave_after: int | None = None) -> list[float]:
    work = learn_condition(
        tiles,
        concept=concept,
        config=config_of(weight),
        make_driver=make_driver,
        driver_digest="d",
        seed=3,
        out=out,
        cache=out.parent / "cache",
    )
    with closing(work):
        for event in work:
            if leave_after is not None and getattr(event, "note", "").startswith("loss") and event.done == leave_after:
                return []
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_it_begins_late_and_a_training_left_meanwhile_ends_the_same(
    concept: Path, training_tiles: Tiles, tmp_path: Path
) -> None:
    tiles = training_tiles()
    plain = learn(tiles, concept, tmp_path / "plain", 0.0)
    rewarded = learn(tiles, concept, tmp_path / "rewarded", 0.5)
    assert rewarded[:3] == plain[:3]
    assert all(0 < more - less < 0.5 for more, less in zip(rewarded[3:], plain[3:], strict=True))
    assert learn(tiles, concept, tmp_path / "left", 0.5, leave_after=4) == []
    assert learn(tiles, concept, tmp_path / "left", 0.5) == rewarded
    assert digest_folder(tmp_path / "left" / "controlnet") == digest_folder(tmp_path / "rewarded" / "controlnet")
