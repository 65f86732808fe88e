from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest

from defectory.evaluation.detection import SIZES, coco_truth, score_detection, segm_map, size_of

from .random_scenes import CATEGORIES, LARGE_HW, SEEDS, random_scene, record, rectangle, result


def pycocotools(records: list[Any], results: list[dict[str, Any]], kind: str) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    kept = [{k: v for k, v in row.items() if kind == "bbox" or k != "bbox"} for row in results]
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_truth(records, CATEGORIES)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(kept), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("with_crowds", [False, True])
@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", SEEDS)
def test_all_figures_are_those_of_pycocotools(seed: int, kind: Any, with_crowds: bool) -> None:
    records, results = random_scene(seed, LARGE_HW, with_crowds=with_crowds)
    scores = score_detection(coco_truth(records, CATEGORIES), CATEGORIES, results, kind)
    reference = pycocotools(records, results, kind)
    stats = reference.stats
    assert 0.02 < scores.map < 0.98
    assert (scores.map, scores.ap50, scores.ar100) == pytest.approx((stats[0], stats[1], stats[8]), abs=1e-9)
    by_size = [-1.0 if (value := scores.map_by_size[size]) is None else value for size in SIZES]
    assert by_size == pytest.approx(list(stats[3:6]), abs=1e-9)
    precision, recall = reference.eval["precision"], reference.eval["recall"]
    for index, category in enumerate(CATEGORIES):
        own, found = precision[:, :, index, 0, -1], recall[:, index, 0, -1]
        if own.max() == -1:
            assert category.id not in scores.per_class
            continue
        of = scores.per_class[category.id]
        assert (of.map, of.ap50, of.ar100) == pytest.approx((own.mean(), own[0].mean(), found.mean()), abs=1e-9)


def test_the_random_scenes_have_instances_of_every_size() -> None:
    areas = [
        row["area"] for seed in SEEDS for row in coco_truth(random_scene(seed, LARGE_HW)[0], CATEGORIES)["annotations"]
    ]
    assert {size_of(area) for area in areas} == set(SIZES)


def test_only_the_hundred_strongest_detections_count() -> None:
    mask, wrong = rectangle(10, 10, 30, 20), rectangle(50, 30, 60, 40)
    noise = [result(1, 1, 0.9, wrong)] * 100
    records = [record(1, (1, mask))]
    assert segm_map(records, CATEGORIES, [*noise, result(1, 1, 0.5, mask)]) == 0.0
    assert segm_map(records, CATEGORIES, [*noise[1:], result(1, 1, 0.5, mask)]) > 0.005


def test_without_detections_all_is_zero_and_without_instances_too() -> None:
    mask = rectangle(10, 10, 30, 20)
    nothing_found = score_detection(coco_truth([record(1, (2, mask))], CATEGORIES), CATEGORIES, [], "segm")
    assert (nothing_found.map, nothing_found.ap50, nothing_found.ar100) == (0.0, 0.0, 0.0)
    assert nothing_found.map_by_size == {"small": 0.0, "medium": None, "large": None}
    assert {c: of.map for c, of in nothing_found.per_class.items()} == {2: 0.0}
    nothing_there = score_detection(coco_truth([record(1)], CATEGORIES), CATEGORIES, [result(1, 1, 0.9, mask)], "segm")
    assert nothing_there.map == 0.0
    assert nothing_there.per_class == {}
    assert set(nothing_there.map_by_size.values()) == {None}


def test_sizes_are_cocos() -> None:
    assert [size_of(area) for area in (1, 1023, 1024, 9215, 9216)] == ["small", "small", "medium", "medium", "large"]


@pytest.mark.parametrize("seed", SEEDS)
def test_segm_map_alone_is_that_of_all_scores(seed: int) -> None:
    records, results = random_scene(seed)
    every = score_detection(coco_truth(records, CATEGORIES), CATEGORIES, results, "segm")
    assert segm_map(records, CATEGORIES, results) == every.map
    assert np.isfinite(every.map)
