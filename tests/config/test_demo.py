"""The demo's folder is made once, and is nobody else's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from defectory.api import demo
from defectory.api.demo import PROJECT_FILE, is_short, open_demo, write_demo
from defectory.engine.speed import Speed
from defectory.errors import OutputError
from defectory.folders.marker import is_ours
from defectory.procedural.borescope import write_dataset

QUICK, SLOW = 400e9, 8e9


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(out: Path, *, seed: int) -> None:
        out.mkdir()
        (out / "annotations.json").write_text(f'{{"seed": {seed}}}')

    monkeypatch.setattr(demo, "write_dataset", write)


def test_a_folder_of_the_users_is_refused_and_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "plan", "report"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("two years of work")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OutputError, match=r"\.: was not made by Defectory and is not empty \(it holds data, plan, report\)"
    ):
        write_demo(Path(), "demo")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "plan", "report"]


def test_a_demo_is_made_once_and_follows_its_preset(tmp_path: Path) -> None:
    file = write_demo(tmp_path / "demo", "demo")
    assert is_ours(tmp_path / "demo", kind="demo")
    first = file.read_text()
    assert write_demo(tmp_path / "demo", "demo").read_text() == first
    assert write_demo(tmp_path / "demo", "demo-full").read_text() != first


def test_an_edited_project_file_is_not_overwritten(tmp_path: Path) -> None:
    file = write_demo(tmp_path / "demo", "demo")
    file.write_text(file.read_text() + "# my notes\n")
    assert write_demo(tmp_path / "demo", "demo").read_text().endswith("# my notes\n")
    with pytest.raises(OutputError, match=rf"{PROJECT_FILE}: was changed since Defectory wrote it"):
        write_demo(tmp_path / "demo", "demo-full")
    assert file.read_text().endswith("# my notes\n")


def test_a_demo_has_a_folder_of_its_own_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = open_demo(preset="demo", overrides={"synthesis.num_images": 3}, seed=4)
    assert project.file == Path("runs/demo/project.toml")
    assert (project.config.synthesis.num_images, project.config.seed) == (3, 4)
    assert open_demo(preset="demo-full").file == Path("runs/demo-full/project.toml")
    assert open_demo(preset="demo-short").file == Path("runs/demo/project.toml")


def on_a_machine(monkeypatch: pytest.MonkeyPatch, multiply_adds_per_s: float) -> None:
    monkeypatch.setattr(demo, "write_dataset", partial(write_dataset, num_labelled=24, num_defect_free=24))
    speed = Speed(one=multiply_adds_per_s, all=multiply_adds_per_s, num_threads=1)
    monkeypatch.setattr("defectory.stages.parts.estimate.estimate.measure_speed", lambda **_: speed)


@pytest.mark.parametrize(("speed", "num_steps"), [(QUICK, 110), (SLOW, 20)])
def test_a_new_demo_is_as_long_as_the_machine_is_fit_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float, num_steps: int
) -> None:
    on_a_machine(monkeypatch, speed)
    project = open_demo(tmp_path / "demo", device="cpu")
    assert project.config.concept.training.num_steps == num_steps
    assert is_short(project) == (speed == SLOW)


def test_the_settings_of_the_command_line_count_for_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine(monkeypatch, SLOW)
    few = {f"{phase}.training.num_steps": 2 for phase in ("concept", "condition")} | {"synthesis.num_images": 4}
    few |= {"concept.num_class_images": 1, "segmentation.num_steps": 4, "synthesis.calibration_drafts": 2}
    assert not is_short(open_demo(tmp_path / "demo", overrides=few, device="cpu"))


def test_a_demo_keeps_its_length_and_another_is_taken_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, SLOW)
    whole = open_demo(tmp_path / "whole", "demo", device="cpu")
    assert open_demo(tmp_path / "whole", device="cpu").config == whole.config
    short = open_demo(tmp_path / "short", device="cpu")
    on_a_machine(monkeypatch, QUICK)
    assert open_demo(tmp_path / "short", device="cpu").config == short.config
    assert not is_short(open_demo(tmp_path / "short", "demo", device="cpu"))
