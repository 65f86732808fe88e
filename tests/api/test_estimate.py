"""What a run would take: time, memory and disk, before anything is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from defectory import Project
from defectory.errors import ConfigError
from defectory.procedural.borescope import write_dataset


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project file of a project of which nothing was run."""
    folder = tmp_path_factory.mktemp("fresh")
    data = write_dataset(folder / "source", seed=0, num_labelled=12, num_defect_free=8, size_hw=(64, 88))
    settings = {"device": "cpu", "threads": 1, "tiling.mode": "tile", "tiling.tile_px": 64}
    return Project.create(folder / "project.toml", data=data, preset="cpu", settings=settings).file


def seconds(file: Path, stage: str, *overrides: str) -> float:
    found = Project.open(file, overrides=overrides, environment={}).estimate()
    known = {of.stage: of.seconds for of in found.stages}[stage]
    assert known is not None
    return known


@pytest.mark.parametrize(
    ("stage", "few", "many"),
    [
        ("learn-concept", "concept.training.num_steps=100", "concept.training.num_steps=400"),
        ("learn-condition", "condition.training.num_steps=100", "condition.training.num_steps=400"),
        ("synthesize", "synthesis.num_images=50", "synthesis.num_images=200"),
        ("synthesize", "synthesis.num_inference_steps=6", "synthesis.num_inference_steps=24"),
        ("segment-real-seed0", "segmentation.num_steps=100", "segmentation.num_steps=400"),
    ],
)
def test_more_of_a_thing_takes_longer(fresh: Path, stage: str, few: str, many: str) -> None:
    # the machine's speed is timed anew each time, and differs while other programs run
    assert seconds(fresh, stage, many) > 1.5 * seconds(fresh, stage, few)


def test_mirror_images_are_predicted_too_by_families_that_find_pixels(fresh: Path) -> None:
    alone = ("evaluation.max_kid_tiles=20", "segmentation.mirrored=false")
    assert seconds(fresh, "evaluate", alone[0]) > 1.5 * seconds(fresh, "evaluate", *alone)
    light = "segmentation.model=light"
    # the machine's speed is timed anew each time
    assert seconds(fresh, "evaluate", alone[0], light) < 1.5 * seconds(fresh, "evaluate", *alone, light)


def test_a_student_takes_time_to_train_and_saves_it_when_drafts_are_drawn(fresh: Path) -> None:
    on, longer = "distillation.enabled=true", "distillation.training.num_steps=1600"
    assert seconds(fresh, "distill", on, longer) > 1.5 * seconds(fresh, "distill", on)
    more_steps = "distillation.teacher_inference_steps=64"
    assert seconds(fresh, "distill", on, more_steps) > 1.5 * seconds(fresh, "distill", on)
    # 12 guided steps against 2 of the student
    few = "distillation.num_inference_steps=2"
    assert seconds(fresh, "synthesize", on, few) < 0.5 * seconds(fresh, "synthesize")


def test_more_seeds_are_more_stages_and_more_disk(fresh: Path) -> None:
    one, three = (
        Project.open(fresh, overrides=[f"segmentation.seeds={seeds}"], environment={}).estimate()
        for seeds in ("[0]", "[0,1,2]")
    )
    assert len(three.stages) == len(one.stages) + 6
    kept = [sum(of.file_bytes for of in found.stages) for found in (one, three)]
    assert 0 < kept[0] < kept[1]
    assert one.memory_bytes > 1e8


def test_what_is_up_to_date_takes_nothing(file: Path) -> None:
    found = Project.open(file, environment={}).estimate()
    assert found.seconds == 0
    assert {(of.seconds, of.memory_bytes, of.file_bytes) for of in found.stages} == {(0, 0, 0)}
    again = Project.open(file, overrides=["synthesis.num_images=9"], environment={}).estimate()
    known = {of.stage: of.seconds for of in again.stages}
    assert known["learn-concept"] == 0
    assert known["synthesize"] != 0


def test_a_disk_that_is_too_small_stops_the_run_before_anything_is_written(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    project = Project.open(fresh, overrides=[f"out={tmp_path / 'run'}"], environment={})
    with pytest.raises(ConfigError, match=r"free"):
        project.run()
    assert not list((tmp_path / "run").glob("*/stage.json"))
