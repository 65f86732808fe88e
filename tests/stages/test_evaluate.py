"""What the stage evaluate says of segmenters that predict nothing, or nothing that is a number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory import Project, StageEnded
from defectory.config.template import project_template
from defectory.errors import InputError
from defectory.files import MANIFEST_NAME
from defectory.rle import decode, encode
from defectory.stages import evaluate

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
Predict = Callable[..., list[dict[str, object]]]


@pytest.fixture
def scored_again(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """A function that runs the stage of a finished run again, with other detections."""
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    file = tmp_path / "copy" / "project.toml"
    file.write_text(project_template(tiny_run[1]))

    def run(predict: Predict, **changes: object) -> Project:
        monkeypatch.setattr(evaluate, "predict", predict)
        # another setting of the stage, so that it runs again
        project = Project.open(file, overrides={"evaluation.bootstrap_samples": 11, **changes})
        project.run(only="evaluate")
        return project

    return run


def detection(record: Any, score: float) -> dict[str, object]:
    mask = np.zeros(record.size_hw, bool)
    mask[4:12, 6:20] = True
    rle = encode(mask)
    coded = {"size": list(rle.size_hw), "counts": rle.counts}
    return {"image_id": record.id, "category_id": 1, "score": score, "segmentation": coded, "bbox": [6, 4, 14, 8]}


def test_a_segmenter_that_predicts_nothing_scores_zero_and_the_stage_says_so(
    scored_again: Callable[..., Project],
) -> None:
    project = scored_again(lambda model, data, records, tiling: [])
    for arm in ("real", "synthetic"):
        own = project.scores["arms"][arm]
        assert (own["segm_map"], own["pixel_ap"], own["plant"]["missed_defect_rate"]) == (0.0, 0.0, 1.0)
        assert [seed["num_predictions"] for seed in own["per_seed"]] == [0] * len(own["per_seed"])
    manifest = (project.folder_of("evaluate") / MANIFEST_NAME).read_text()
    assert "No detection on any test image with at least one seed: real, synthetic" in manifest


def test_parts_of_defects_are_told_by_their_pixels(
    scored_again: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectory.evaluation.verdict.MIN_SEEDS", 1)

    def left_third(model: Any, data: Any, records: Any, scale: float) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for record in records:
            for instance in record.instances:
                mask = decode(instance.rle)
                columns = np.flatnonzero(mask.any(axis=0))
                mask[:, columns[len(columns) // 3] :] = False
                rle = encode(mask)
                coded = {"size": list(rle.size_hw), "counts": rle.counts}
                of = {"image_id": record.id, "category_id": instance.category_id, "score": 0.9}
                if mask.any():
                    found.append({**of, "segmentation": coded, "bbox": [int(columns[0]), 0, 1, 1]})
        return found

    project = scored_again(left_third, **{"segmentation.arms": ["real", "synthetic"]})
    verdict, own = project.scores["verdict"], project.scores["arms"]["real"]
    assert (own["segm_map"], own["pixel_ap"] > 0.05) == (0.0, True)
    assert (verdict["outcome"], verdict["pixel_ap_gain"]) == ("not enough evidence", 0.0)
    assert f"Pixel AP {own['pixel_ap']:.3f} with" in verdict["sentence"]


def test_a_score_that_is_no_number_stops_the_stage_and_names_the_image(
    scored_again: Callable[..., Project], tiny_run: TinyRun, tmp_path: Path
) -> None:
    before = (tiny_run[0] / "run" / "scores.json").read_bytes()
    with pytest.raises(InputError, match="a detection has the score nan"):
        scored_again(lambda model, data, records, tiling: [detection(records[0], float("nan"))])
    assert (tmp_path / "copy" / "run" / "scores.json").read_bytes() == before


def test_every_good_image_with_a_detection_is_a_false_alarm(scored_again: Callable[..., Project]) -> None:
    project = scored_again(lambda model, data, records, tiling: [detection(record, 0.99) for record in records])
    plant = project.scores["arms"]["real"]["per_seed"][0]["plant"]
    expected = 100.0 if plant["num_good_images"] else None
    assert plant["false_alarms_per_100_good_images"] == expected
    assert plant["missed_image_rate"] == 0.0
