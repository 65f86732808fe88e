from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from defectory.config.command import CommandLine, setting_text
from defectory.config.resolve import flatten, resolve, with_settings

DATA = {"data": {"path": "labels.json"}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("segmentation.seeds", [0, 1, 2]),
        ("segmentation.arms", ["real", "synthetic"]),
        ("name", "it's a $part with `marks` & <b>"),
        ("name", "2024"),
        ("name", "true"),
        ("name", " spaced "),
        ("name", '"quoted"'),
        ("name", "Gehäuse"),
        ("synthesis.mask_guidance", "auto"),
        ("synthesis.mask_guidance", 1.5),
        ("threads", None),
        ("drivers.defect_blind", False),
    ],
)
def test_a_setting_comes_back_from_its_text_and_from_a_shell(key: str, value: Any) -> None:
    text = setting_text(key, value)
    assert shlex.split(CommandLine().text(settings={key: value}))[-1] == text
    config = resolve(project=DATA, overrides=[text]).config
    assert flatten(config.model_dump(mode="json"))[key] == value


def test_a_command_keeps_how_the_project_was_opened() -> None:
    command = CommandLine(file="p.toml", preset="cpu", settings={"seed": 3, "segmentation.seeds": [0]})
    text = command.text("drivers tune", settings={"segmentation.seeds": [0, 1]}, arguments=("--out", "a b"))
    assert text == "defectory drivers tune p.toml --preset cpu -o seed=3 -o 'segmentation.seeds=[0,1]' --out 'a b'"


@pytest.mark.parametrize("name", ["my project.toml", "it's.toml", '"a".toml', "a;ls $(b) `c`.toml", "<b>&.toml"])
def test_a_file_name_is_one_word_for_a_shell(name: str) -> None:
    assert shlex.split(CommandLine(file=name).text()) == ["defectory", "run", name]


def test_a_file_name_is_never_taken_for_an_option() -> None:
    assert CommandLine(file="--help").text() == "defectory run ./--help"


def test_what_stands_beside_the_project_file_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "part.toml"
    file.write_text('preset = "cpu"\nseed = 1\n[data]\npath = "labels.json"\n')
    environment = {"DEFECTORY_SYNTHESIS__NUM_IMAGES": "50", "DEFECTORY_SEED": "4"}
    command = resolve(project_file=file, preset="demo", environment=environment, overrides=["seed=5"]).command
    assert command == CommandLine(file="part.toml", preset="demo", settings={"seed": 5, "synthesis.num_images": 50})
    assert resolve(project_file=file, preset="cpu").command == CommandLine(file="part.toml")


def test_other_settings_leave_the_rest_and_the_old_configuration_alone() -> None:
    config = resolve(project=DATA, preset="demo").config
    changed = with_settings(config, {"segmentation.seeds": [0, 1], "condition.training.num_steps": 7})
    assert (changed.segmentation.seeds, changed.condition.training.num_steps) == ((0, 1), 7)
    assert (
        changed
        == resolve(
            project=DATA, preset="demo", overrides=["segmentation.seeds=[0,1]", "condition.training.num_steps=7"]
        ).config
    )
    assert config.segmentation.seeds == (0,)
