"""The public Python API, on a tiny run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import defectory
from defectory import Project, Segmenter, StageEnded, extract_driver, score_fidelity, synthesize
from defectory.errors import ConfigError


def test_every_exported_name_is_there_and_importing_takes_no_torch() -> None:
    for name in defectory.__all__:
        assert getattr(defectory, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'paint'"):
        _ = defectory.paint  # type: ignore[attr-defined]
    code = "import sys, defectory; [getattr(defectory, n) for n in defectory.__all__]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_opening_a_project_takes_no_torch(file: Path) -> None:
    code = f"import sys, defectory; defectory.Project.open({str(file)!r}).stages(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_the_reference_page_lists_every_name() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "index.md").read_text("utf-8")
    spans = " ".join(re.findall(r"`([^`\n]+)`", page.partition("## Python")[2]))
    assert set(defectory.__all__) - {"__version__"} <= set(re.findall(r"\w+", spans))


def test_a_finished_project_is_read_by_name(file: Path) -> None:
    project = Project.open(file)
    assert {state.state for state in project.states().values()} == {"up to date"}
    assert [event.skipped for event in project.events() if isinstance(event, StageEnded)] == [True] * 19
    assert len(project.plan.jobs) == len(project.decisions.decisions) == 8
    assert project.drafts.image(project.plan.jobs[0]).shape == (32, 32, 3)
    assert set(project.split.train) <= {record.id for record in project.dataset.images}
    assert set(project.scores["arms"]) == {"real", "synthetic", "synthetic_then_real"}
    assert (project.synthetic / "annotations.json").is_file()
    assert project.report.is_file()
    assert {finding.state for finding in project.verify()} == {"whole"}


def test_how_fast_a_run_works_makes_no_stage_run_again(file: Path) -> None:
    project = Project.open(file, overrides={"num_processes": 2, "threads": 2, "executor": "in-process"})
    assert {name for name, state in project.states().items() if state.state != "up to date"} == set()


def test_a_changed_setting_says_what_it_changes_and_stages_run_until_a_name(file: Path) -> None:
    project = Project.open(file, overrides={"synthesis.num_images": 5})
    state = project.states()["plan"]
    assert (state.state, state.why) == ("to be run again", "synthesis.num_images: 8 -> 5")
    assert project.stages(until="plan")[-1] == "plan"
    assert project.stages(only="segment") == [
        f"segment-{arm}-seed0" for arm in ("real", "synthetic", "synthetic_then_real")
    ]
    project.run(until="plan")
    assert len(project.plan.jobs) == 5
    with pytest.raises(ConfigError, match="no such stage"):
        project.stages(until="paint")


def test_a_project_file_is_written_with_what_matters_or_with_everything(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project.toml", data=tmp_path / "labels.json", preset="gpu-24gb")
    few = (tmp_path / "project.toml").read_text()
    assert "# num_steps = 8000" in few
    assert project.config.condition.training.num_steps == 8000
    with pytest.raises(ConfigError, match="is there already"):
        Project.create(tmp_path / "project.toml", data="labels.json")
    Project.create(tmp_path / "all.toml", data="labels.json", every_setting=True)
    assert len((tmp_path / "all.toml").read_text().splitlines()) > 4 * len(few.splitlines())


def test_a_new_project_file_holds_the_settings_that_are_given(tmp_path: Path) -> None:
    file = tmp_path / "project.toml"
    given = {"synthesis.num_images": 7, "segmentation": {"arms": ["real"]}, "name": "vanes"}
    made = Project.create(file, data="labels.json", settings=given)
    for config in (made.config, Project.open(file, environment={}).config):
        assert (config.name, config.synthesis.num_images, config.segmentation.arms) == ("vanes", 7, ("real",))
    for wrong, said in (({"synthesis.images": 7}, "no such setting"), ({"threads": None}, "threads: is None")):
        with pytest.raises(ConfigError, match=said):
            Project.create(tmp_path / "wrong.toml", data="labels.json", settings=wrong)
    assert not (tmp_path / "wrong.toml").exists()


def test_a_project_says_which_finished_stages_would_be_replaced(file: Path) -> None:
    changed = Project.open(file, overrides={"segmentation.num_steps": 5}, environment={})
    segmenters = changed.stages(only="segment")
    replaced = changed.to_run_again(segmenters)
    assert [state.stage for state in replaced] == segmenters
    assert replaced[0].why == "segmentation.num_steps: 4 -> 5"
    assert changed.to_run_again(changed.stages(until="tiles")) == []
    assert changed.to_run_again(segmenters, min_seconds=3600) == []


def test_a_path_is_named_as_the_project_file_can_hold_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent / "source")
    assert Project.open(file).path_from("images") == "source/images"
    assert Project.open(file).path_from(Path("../masks")) == "masks"


def test_one_image_is_drawn_from_a_driver_and_scored(file: Path) -> None:
    project = Project.open(file)
    job = project.plan.jobs[0]
    driver = project.drafts.driver(job)
    empty = np.minimum(driver, 50)
    drawn, without = synthesize(project, driver, class_names=["hairline"], empty_driver=empty, seed=3)
    assert without is not None
    assert drawn.shape == without.shape == driver.shape
    again, _ = synthesize(project, driver, class_names=["hairline"], empty_driver=empty, seed=3)
    assert (drawn == again).all()
    alone, nothing = synthesize(project, driver, seed=3)
    assert nothing is None
    assert alone.shape == driver.shape
    mask = np.zeros(driver.shape[:2], bool)
    mask[8:24, 8:30] = True
    assert 0 <= score_fidelity(drawn, without, [mask]).iou <= 1


def test_a_driver_is_dim_with_bright_masks() -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 70, 3)).astype(np.uint8)
    mask = np.zeros((48, 70), bool)
    mask[10:20, 30:50] = True
    driver = extract_driver(image, [(2, mask)], num_classes=3, grid_px=16)
    assert driver[~mask].max() <= 50
    assert driver[mask].max() == 255
    with pytest.raises(ConfigError, match=r"drivers\.kind 'paint'"):
        extract_driver(image, kind="paint")


def test_a_segmenter_predicts_a_file_and_an_array_alike(file: Path) -> None:
    project = Project.open(file)
    segmenter = Segmenter.load(project.run_folder / "segment" / "real-seed0")
    record = project.dataset.images[0]
    path = project.store.data.path(record)
    found = segmenter.predict(path, min_score=0.0)
    same = segmenter.predict(project.store.data.image(record), min_score=0.0)
    assert [d.score for d in found] == [d.score for d in same]
    assert all(d.mask.shape == record.size_hw for d in found)
