from __future__ import annotations

from typing import Any

import pytest

from defectory.artifacts.scores import PlantScores
from defectory.evaluation.plant import inspect, score_plant
from defectory.evaluation.scenes import scenes_of

from .random_scenes import LARGE_HW, SEEDS, masks_of, random_scene, record, rectangle, result, true_masks_of

NAMES = {1: "crack", 2: "blowhole"}


def plant(records: list[Any], results: list[dict[str, Any]], *, threshold: float = 0.5) -> PlantScores:
    return score_plant([inspect(scene) for scene in scenes_of(records, results)], NAMES, score_threshold=threshold)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("seed", SEEDS)
def test_figures_are_those_counted_on_whole_masks(seed: int, threshold: float) -> None:
    records, results = random_scene(seed, LARGE_HW, with_crowds=True)
    scores = plant(records, results, threshold=threshold)
    missed, defects, silent, defective, alarms, good = ([], 0, 0, 0, 0, 0)
    for one in records:
        found, true = masks_of(results, one.id, least=threshold), true_masks_of(one)
        defects += len(true)
        missed += [label for label, mask in true if not any((mask & other).any() for _, _, other in found)]
        defective += bool(true)
        silent += bool(true) and not found
        good += not one.instances
        alarms += not one.instances and bool(found)
    assert (scores.num_defects, scores.num_defective_images, scores.num_good_images) == (defects, defective, good)
    assert scores.missed_defect_rate == pytest.approx(len(missed) / defects)
    assert scores.missed_image_rate == pytest.approx(silent / defective)
    assert scores.false_alarms_per_100_good_images == pytest.approx(100 * alarms / good)
    labels = [label for one in records for label, _ in true_masks_of(one)]
    for category_id, name in NAMES.items():
        assert scores.per_class_missed_defect_rate[name] == pytest.approx(
            missed.count(category_id) / labels.count(category_id)
        )
    rates, counts = scores.missed_defect_rate_by_size, scores.num_defects_by_size
    assert sum((rates[size] or 0.0) * counts[size] for size in counts) == pytest.approx(len(missed))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_curve_holds_the_figures_at_each_threshold(seed: int) -> None:
    records, results = random_scene(seed)
    curve = plant(records, results).curve
    assert len(curve.score_thresholds) <= 101
    assert curve.missed_defect_rate is not None
    assert curve.missed_image_rate is not None
    assert curve.false_alarms_per_100_good_images is not None
    for place in (0, 5, 37, 50, 95, 100):
        at = plant(records, results, threshold=curve.score_thresholds[place])
        assert at.missed_defect_rate == curve.missed_defect_rate[place]
        assert at.missed_image_rate == curve.missed_image_rate[place]
        assert at.false_alarms_per_100_good_images == curve.false_alarms_per_100_good_images[place]
    assert list(curve.missed_defect_rate) == sorted(curve.missed_defect_rate)
    assert list(curve.false_alarms_per_100_good_images) == sorted(curve.false_alarms_per_100_good_images, reverse=True)


def test_one_shared_pixel_finds_a_defect_and_the_class_does_not_matter() -> None:
    mask = rectangle(10, 10, 30, 20)
    corner, beside = rectangle(29, 19, 50, 40), rectangle(30, 20, 50, 40)
    assert plant([record(1, (1, mask))], [result(1, 2, 0.5, corner)]).missed_defect_rate == 0.0
    assert plant([record(1, (1, mask))], [result(1, 1, 0.9, beside)]).missed_defect_rate == 1.0
    assert plant([record(1, (1, mask))], [result(1, 1, 0.9, beside)]).missed_image_rate == 0.0
    assert plant([record(1, (1, mask))], [result(1, 1, 0.49, corner)]).missed_defect_rate == 1.0


def test_a_good_image_with_three_detections_is_one_false_alarm() -> None:
    mask = rectangle(10, 10, 30, 20)
    records = [record(1), record(2), record(3), record(4)]
    results = [result(2, 1, score, mask) for score in (0.9, 0.8, 0.7)]
    assert plant(records, results).false_alarms_per_100_good_images == 25.0


def test_rates_of_nothing_are_none() -> None:
    mask = rectangle(10, 10, 30, 20)
    no_good = plant([record(1, (1, mask))], [])
    assert no_good.false_alarms_per_100_good_images is None
    assert no_good.curve.false_alarms_per_100_good_images is None
    assert (no_good.missed_defect_rate, no_good.missed_image_rate) == (1.0, 1.0)
    assert no_good.missed_defect_rate_by_size == {"small": 1.0, "medium": None, "large": None}
    assert no_good.per_class_missed_defect_rate == {"crack": 1.0}
    no_defects = plant([record(1)], [result(1, 1, 0.9, mask)])
    assert (no_defects.missed_defect_rate, no_defects.missed_image_rate) == (None, None)
    assert no_defects.false_alarms_per_100_good_images == 100.0
    only_a_crowd = plant([record(1, crowds=((1, mask),))], [result(1, 1, 0.9, mask)])
    assert (only_a_crowd.num_defective_images, only_a_crowd.num_good_images) == (0, 0)
