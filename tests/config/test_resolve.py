from __future__ import annotations

import pytest

from defectory.config.presets import PRESETS
from defectory.config.resolve import defaults, flatten, resolve
from defectory.errors import ConfigError

PROJECT = {"name": "p", "data": {"path": "a.json"}}


def test_setting_one_key_leaves_the_other_defaults_of_its_section() -> None:
    """`concept.training` and `condition.training` share a type, but not its defaults."""
    plain = flatten(resolve(project=PROJECT).config.model_dump())
    for key in ("concept.training.batch_size", "condition.training.validate_every"):
        changed = flatten(resolve(project=PROJECT, overrides=[f"{key}=7"]).config.model_dump())
        assert {k for k in plain if plain[k] != changed[k]} == {key}


def test_what_init_lists_as_default_is_what_a_project_runs_with() -> None:
    resolved = flatten(resolve(project=PROJECT).config.model_dump())
    listed = {key: value for key, (value, _) in defaults().items()}
    differing = {key for key, value in resolved.items() if key in listed and listed[key] != value}
    assert differing <= {"name", "data.path"}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_changes_the_keys_it_names_and_no_other(preset: str) -> None:
    plain = flatten(resolve(project=PROJECT).config.model_dump(mode="json"))
    resolved = resolve(project=PROJECT, preset=preset)
    changed = flatten(resolved.config.model_dump(mode="json"))
    named = flatten(PRESETS[preset])
    assert {key for key in plain if plain[key] != changed[key]} <= set(named)
    assert {key for key, origin in resolved.origins.items() if origin == f"preset {preset}"} == set(named)


def test_later_layers_win() -> None:
    layered = resolve(
        project={**PROJECT, "preset": "cpu", "synthesis": {"num_images": 5}},
        environment={"DEFECTORY_SYNTHESIS__NUM_IMAGES": "6"},
        overrides=["synthesis.num_images=7"],
    )
    assert layered.config.synthesis.num_images == 7
    assert layered.origins["synthesis.num_images"] == "command line"
    assert layered.origins["condition.training.learning_rate"] == "preset cpu"


@pytest.mark.parametrize("value", ["foo", "0.5", "true"])
def test_mask_guidance_that_is_neither_auto_nor_a_number_says_both(value: str) -> None:
    with pytest.raises(ConfigError, match=r"synthesis\.mask_guidance.*neither `auto` nor a number of at least 1"):
        resolve(project=PROJECT, overrides=[f"synthesis.mask_guidance={value}"])
    assert resolve(project=PROJECT, overrides=["synthesis.mask_guidance=2"]).config.synthesis.mask_guidance == 2.0
    assert resolve(project=PROJECT, overrides=["synthesis.mask_guidance=auto"]).config.synthesis.mask_guidance == "auto"
