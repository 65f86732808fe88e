"""Which test images the report shows, and what its files hold."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory import Project, StageEnded
from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.config.template import project_template
from defectory.evaluation.scenes import Scene, scenes_of
from defectory.rle import encode
from defectory.stages.parts import report_predictions
from defectory.stages.parts.report_predictions import MOST_RIGHT, MOST_WRONG, agreement, choose_images

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
SIZE_HW = (40, 56)


def mask(left: int, width: int = 10) -> Any:
    found = np.zeros(SIZE_HW, bool)
    found[10:20, left : left + width] = True
    return encode(found)


def scene(number: int, *, true: int | None, found: int | None, score: float = 0.9) -> Scene:
    """An image with a label and a detection of 10 x 10 px that begin at these columns."""
    instances = () if true is None else (Instance(category_id=1, rle=mask(true)),)
    record = ImageRecord(
        id=number, file_name=f"{number}.png", size_hw=SIZE_HW, sha256="0" * 64, group=str(number), instances=instances
    )
    results = []
    if found is not None:
        rle = mask(found)
        coded = {"size": list(rle.size_hw), "counts": rle.counts}
        results = [{"image_id": number, "category_id": 1, "score": score, "segmentation": coded}]
    return next(scenes_of([record], results))


def test_agreement_is_the_iou_of_all_labels_with_all_detections() -> None:
    assert agreement(scene(1, true=5, found=5)) == 1.0
    assert agreement(scene(1, true=5, found=10)) == 50 / 150
    assert agreement(scene(1, true=5, found=None)) == 0.0
    assert agreement(scene(1, true=None, found=5)) == 0.0
    assert agreement(scene(1, true=None, found=None)) is None


def test_a_large_image_is_cut_around_its_defect_and_thin_outlines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_predictions, "WINDOW_PX", 30)
    monkeypatch.setattr(report_predictions, "MARGIN_PX", 2)
    shown = scene(1, true=30, found=None)
    rows, columns = report_predictions._window(shown.record, [shown])
    assert (rows.start, rows.stop, columns.start, columns.stop) == (8, 23, 28, 43)
    cut = report_predictions._mask(shown.true[0], (rows, columns))
    assert np.argwhere(cut)[[0, -1]].tolist() == [[2, 2], [11, 11]]
    monkeypatch.setattr(report_predictions, "CELL_PX", 10)
    line = np.zeros((40, 60), bool)
    line[20, 5:55] = True
    drawn = report_predictions._outlined(np.zeros((40, 60, 3), np.uint8), [((255, 0, 0), line)])
    assert drawn.shape == (7, 10, 3)
    assert (drawn == (255, 0, 0)).all(axis=2).sum() > 10


def test_missed_defects_and_false_alarms_are_most_wrong_and_no_image_is_shown_twice() -> None:
    scenes = [
        scene(1, true=5, found=5),
        scene(2, true=5, found=8),
        scene(3, true=5, found=12),
        scene(4, true=5, found=None),
        scene(5, true=None, found=5, score=0.4),
        scene(6, true=None, found=5, score=0.8),
        scene(7, true=None, found=None),
    ]
    chosen = {which: [record.id for record in records] for which, records in choose_images(scenes).items()}
    assert chosen == {MOST_RIGHT: [1, 2], MOST_WRONG: [4, 3, 6, 5]}
    nothing = choose_images([scene(1, true=5, found=None)])
    assert {which: len(records) for which, records in nothing.items()} == {MOST_RIGHT: 0, MOST_WRONG: 1}


def test_the_report_has_both_grids_and_files_for_other_programs(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    file = tmp_path / "copy" / "project.toml"
    file.write_text(project_template(tiny_run[1]))
    project = Project.open(file)
    project.run(only="report")
    page = project.report.read_text(encoding="utf-8")
    assert "Test images on which the best segmenter is most wrong" in page
    heads = ("What to use", "What to do next", "Red flags", "Scores", "Pictures", "Training", "How it was made")
    places = [page.index(f">{head}<") for head in heads]
    assert places == sorted(places)
    assert "defectory run project.toml" in page[places[-1] :]
    with open(project.folder_of("report") / "scores.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = {arm: own["per_seed"][0]["segm_map"] for arm, own in project.scores["arms"].items()}
    found = {row["arm"]: float(row["value"]) for row in rows if row["score"] == "segm_map" and row["seed"] == "0"}
    assert found.keys() == expected.keys()
    assert all(abs(found[arm] - expected[arm]) < 1e-5 for arm in expected)
    assert any(row["score"] == "plant.num_defects" for row in rows)
    svg = (project.folder_of("report") / "ladder.svg").read_text()
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "var(" not in svg
