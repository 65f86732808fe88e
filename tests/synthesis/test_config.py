from __future__ import annotations

import pytest

from defectory.config.resolve import resolve
from defectory.errors import ConfigError
from defectory.synthesis.config import SynthesisConfig


@pytest.mark.parametrize(("num_images", "rounds"), [(8, 1), (8, 3), (7, 7), (200, 4)])
def test_rounds_draw_even_parts_that_add_up(num_images: int, rounds: int) -> None:
    config = SynthesisConfig(num_images=num_images, rounds=rounds, num_drivers=5)
    parts = [config.of_round(number) for number in range(1, rounds + 1)]
    counts = [of.num_images for of in parts]
    assert sum(counts) == num_images
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1
    assert all(of.rounds == 1 and (of.num_drivers or 0) >= 1 for of in parts)


def test_one_round_is_the_settings_themselves() -> None:
    config = SynthesisConfig(num_images=9)
    assert config.of_round(1) is config


def test_a_round_without_a_draft_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds 3 are more than num_images 2"):
        resolve(project={"data": {"path": "a.json"}}, overrides=["synthesis.rounds=3", "synthesis.num_images=2"])


@pytest.mark.parametrize(("start", "end", "taken"), [(0.0, 1.0, True), (0.5, 0.75, True), (0.6, 0.7, False)])
def test_a_network_that_would_act_in_no_step_is_refused(start: float, end: float, taken: bool) -> None:
    settings = {"num_inference_steps": 4, "control_guidance_start": start, "control_guidance_end": end}
    if taken:
        assert SynthesisConfig.model_validate(settings).control_guidance_end == end
        return
    overrides = [f"synthesis.{name}={value}" for name, value in settings.items()]
    with pytest.raises(ConfigError, match=r"no whole step of num_inference_steps 4 lies between .* 0.6 and"):
        resolve(project={"data": {"path": "a.json"}}, overrides=overrides)
