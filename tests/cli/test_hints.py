"""What users of other programs try first is answered with what to write here: one line, exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectory.cli.hints import OF_PROJECTS
from defectory.config.resolve import defaults

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project file in the current folder, whose data are not there."""
    file = tmp_path / "project.toml"
    file.write_text('out = "runs/a"\ndevice = "cpu"\n[data]\npath = "labels.json"\n')
    monkeypatch.chdir(tmp_path)
    return file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "runs/b"], "`-o out=FOLDER`"),
        (["--resume"], "a run resumes by itself: `defectory run` again"),
        (["--steps", "100"], "`-o concept.training.num_steps=N`"),
        (["--num_steps", "100"], "`-o concept.training.num_steps=N`"),
        (["--epochs", "3"], "training is counted in steps"),
        (["--lr=0.1"], "`-o concept.training.learning_rate=X`"),
        (["--gpu", "0"], "`--device cuda`"),
        (["--config", "project.toml"], "`defectory run project.toml`"),
        (["-h"], "`--help`"),
    ],
)
def test_an_option_of_other_programs_is_answered_with_ours(defectory: Cli, arguments: list[str], said: str) -> None:
    outcome = defectory("run", *arguments)
    assert outcome.code == 2
    assert said in outcome.error_line
    assert outcome.error_line.startswith(f"error: no such option: {arguments[0].partition('=')[0]}; ")


def test_a_stage_and_the_demo_have_the_same_hints(defectory: Cli) -> None:
    for verb in ("learn-concept", "segment", "demo"):
        assert "training is counted in steps" in defectory(verb, "--epochs", "3").error_line


def test_a_verb_without_settings_is_not_told_to_set_any(defectory: Cli) -> None:
    line = defectory("doctor", "--out", "x").error_line
    assert "`-o " not in line
    assert "doctor --help`" in line


def test_every_setting_that_a_hint_names_exists() -> None:
    known = {*defaults()}
    named = {word.partition("=")[0].strip("'") for hint in OF_PROJECTS.values() for word in _after_o(hint)}
    assert len(named) > 10
    assert named <= known


def _after_o(hint: str) -> list[str]:
    return [rest.split("`")[0] for rest in hint.split("`-o ")[1:]]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("segmentation.seeds=3", "`-o 'segmentation.seeds=[0,1,2]'` for 3 of them"),
        ("segmentation.seeds=1", "`-o 'segmentation.seeds=[1]'`"),
        ("segmentation.arms=real", "`-o 'segmentation.arms=[\"real\"]'`"),
        ("segmentation.arms=[real,synthetic]", '`-o \'segmentation.arms=["real","synthetic"]\'`'),
        ("outt=X", "did you mean 'out' or 'study.out'?"),
        ("num_images=5", "did you mean 'synthesis.num_images'?"),
        ("synthesis.num_imges=5", "did you mean 'synthesis.num_images'?"),
    ],
)
def test_a_setting_that_is_nearly_right_is_answered_with_the_right_one(
    defectory: Cli, override: str, said: str
) -> None:
    outcome = defectory("run", "-o", override)
    assert outcome.code == 2
    assert said in outcome.error_line


@pytest.mark.parametrize("name", ["runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1", "sd15"])
def test_a_base_named_as_on_a_hub_is_not_downloaded_and_the_user_is_told_where_to_put_it(
    defectory: Cli, project: Path, name: str
) -> None:
    (project.parent / "labels.json").write_text("{}")
    for arguments in (("run", "-o", f"base={name}"), ("base", "verify", name)):
        outcome = defectory(*arguments)
        assert outcome.code == 2
        assert name in outcome.error_line
        assert "downloaded" in outcome.error_line
        assert "set `base` to its path" in outcome.error_line
        assert "`defectory base verify PATH`" in outcome.error_line
    assert not (project.parent / "runs").exists()


def test_a_mistyped_path_of_a_base_is_not_taken_for_a_hub_name(defectory: Cli, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    line = defectory("base", "verify", "models/sd1").error_line
    assert "hub" not in line
    assert "models/sd1: neither a folder nor a known base" in line
