from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from defectory import Notice, Project, StageEnded, Study
from defectory.errors import ConfigError, OutputError
from defectory.studies.running import CellChanged, stages_until_scores

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
OF_STUDY = {
    "study.seeds": [0, 1],
    "study.arms": ["real", "mixed"],
    "study.num_labelled": [8, 500],
    "study.num_parallel": 1,
}


@pytest.fixture(scope="module")
def file(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(tiny_run[0] / "source", folder / "source")
    settings = {**tiny_run[1], **OF_STUDY, "study.with_all": False, "curation.checks": [], "synthesis.num_images": 4}
    settings |= {f"{phase}.training.num_steps": 2 for phase in ("concept", "condition")}
    return Project.create(
        folder / "project.toml", data=folder / "source" / "annotations.json", preset=None, settings=settings
    ).file


def states(study: Study, *, until: int | None = None) -> list[tuple[str, str]]:
    """What became of the cells, until so many are finished."""
    found: list[tuple[str, str]] = []
    events = study.events()
    for event in events:
        if isinstance(event, CellChanged) and event.state != "running":
            found.append((event.cell, event.state))
            if until is not None and len(found) == until:
                break
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    return found


def test_a_study_that_is_stopped_goes_on_and_trains_nothing_twice(file: Path) -> None:
    study = Study.open(file, overrides={"study.num_labelled": [8]})
    assert states(study, until=1) == [("8 images, seed 0", "finished")]
    assert states(study) == [("8 images, seed 0", "finished before"), ("8 images, seed 1", "finished")]
    cells = [study.project_of(cell) for cell in study.cells]
    assert len({project.store.split.test for project in cells}) == 1
    assert len({project.store.split.train for project in cells}) == 2
    assert all(len(project.store.split.train) == 8 for project in cells)
    for project in cells:
        # everything that a cell's generator saw is of its own amount
        split = project.store.split
        assert {entry.image_id for entry in project.store.bank.entries} <= set(split.train)
        assert {t.image_id for t in project.store.tiles.tileset.of("train")} <= set(split.train)
    outcome = json.loads((study.folder / "ladder.json").read_bytes())
    (point,) = outcome["points"]
    assert (point["num_finished"], point["num_labelled"]) == (2, 8.0)
    assert point["verdict"]["outcome"] == "not enough evidence"
    assert study.page.is_file()
    # another study of the same folder needs nothing new
    assert states(Study.open(file, overrides={"study.num_labelled": [8], "study.recipe": "scarcity"})) == [
        ("8 images, seed 0", "finished before"),
        ("8 images, seed 1", "finished before"),
    ]


def test_arms_without_drafts_need_no_generator(file: Path) -> None:
    study = Study.open(file, overrides={"study.arms": ["real_plain", "copy_paste"], "study.seeds": [0]})
    assert [stage.name for stage in stages_until_scores(study.run_of(study.cells[0]))] == [
        "import",
        "split",
        "segment-real_plain-seed0",
        "segment-copy_paste-seed0",
        "evaluate",
    ]


def test_amounts_above_what_there_is_are_left_out_and_told(file: Path) -> None:
    study = Study.open(file, overrides={"study.num_labelled": [500], "study.with_all": True, "study.seeds": [0]})
    told = [event.text for event in study._look_at_data() if isinstance(event, Notice)]  # pyright: ignore[reportPrivateUsage]
    assert any(text.startswith("500 images: left out, train has") for text in told)
    assert [cell.amount.label for cell in study.cells] == ["all"]


def test_a_wrong_variant_is_refused_before_anything_is_written(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"synthesis\.num_imges: no such setting"):
        Study.open(file, overrides={"study.variants": ["typo: synthesis.num_imges=3"], "study.out": "runs/other"})
    assert not (file.parent / "runs" / "other").exists()


def test_a_single_arm_is_nothing_to_compare(file: Path) -> None:
    study = Study.open(file, overrides={"study.arms": ["real"], "study.out": "runs/other"})
    with pytest.raises(ConfigError, match="a single arm of a single variant"):
        next(iter(study.events()))
    assert not (file.parent / "runs" / "other").exists()


def test_one_cell_is_run_up_to_a_stage_and_a_study_goes_on_from_there(file: Path) -> None:
    study = Study.open(file, overrides={"study.num_labelled": [8], "study.out": "runs/cut"})
    cell = study.cells[0]

    def ended(until: str) -> list[tuple[str, bool]]:
        events = study.events_of(cell, until=until)
        return [(event.stage, event.skipped) for event in events if isinstance(event, StageEnded)]

    assert ended("split") == [("import", False), ("split", False)]
    assert ended("tiles") == [("import", True), ("split", True), ("tiles", False)]
    assert study.run_of(cell).store().tiles.tileset.of("train")
    # its folder is that of a study
    assert study.check() == ()


def test_a_folder_of_the_users_is_refused(file: Path) -> None:
    mine = file.parent / "mine"
    mine.mkdir()
    (mine / "thesis.docx").write_text("mine")
    with pytest.raises(OutputError, match="thesis"):
        next(iter(Study.open(file, overrides={"study.out": "mine"}).events()))
    assert [path.name for path in mine.iterdir()] == ["thesis.docx"]


def test_transfer_needs_a_data_set(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.transfer_to: is not set"):
        Study.open(file, overrides={"study.recipe": "transfer", "study.out": "runs/other"}).check()
