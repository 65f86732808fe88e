from __future__ import annotations

import math

import numpy as np
import pytest

from defectory.errors import InputError
from defectory.evaluation.detection import coco_truth, score_detection
from defectory.evaluation.mask_metrics import pixel_ap, score_segmenter

from .random_scenes import CATEGORIES, LARGE_HW, SEEDS, SIZE_HW, random_scene, record, rectangle, result, true_masks_of


@pytest.mark.parametrize("seed", SEEDS)
def test_all_scores_are_there_and_in_their_ranges(seed: int) -> None:
    records, results = random_scene(seed, LARGE_HW, with_crowds=True)
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    truth = coco_truth(records, CATEGORIES)
    segm, bbox = (score_detection(truth, CATEGORIES, results, kind) for kind in ("segm", "bbox"))
    assert (scores.segm_map, scores.ap50, scores.segm_ar100) == (segm.map, segm.ap50, segm.ar100)
    assert (scores.bbox_map, scores.bbox_ap50, scores.bbox_ar100) == (bbox.map, bbox.ap50, bbox.ar100)
    assert set(scores.per_class) == set(scores.per_class_segm_map) == {"crack", "blowhole"}
    for name, of_class in scores.per_class.items():
        assert of_class.segm_map == scores.per_class_segm_map[name]
    for key in ("segm_map", "bbox_map", "pixel_ap", "pixel_f1_max"):
        mean = np.mean([getattr(of_class, key) for of_class in scores.per_class.values()])
        assert getattr(scores, key) == pytest.approx(mean)
    for key in ("iou", "dice", "hausdorff", "hd95"):
        weighted = sum(getattr(of_class, key) * of_class.num_instances for of_class in scores.per_class.values())
        assert getattr(scores, key) == pytest.approx(weighted / scores.num_instances)
        assert 0.0 < getattr(scores, key) < 1.0
    assert 0.0 < scores.cldice < 1.0
    assert 0.0 < scores.boundary_f1_2px < 1.0
    assert scores.iou < scores.dice
    assert scores.num_predictions == len(results)
    assert scores.num_predictions_at_threshold == sum(row["score"] >= 0.5 for row in results)
    assert scores.num_instances == scores.plant.num_defects == sum(len(true_masks_of(one)) for one in records)


def test_a_class_without_detections_scores_zero_and_one_without_instances_is_left_out() -> None:
    mask = rectangle(10, 10, 30, 20)
    scores = score_segmenter(
        [record(1, (1, mask), (2, np.roll(mask, 30, 1)))], CATEGORIES, [result(1, 1, 0.9, mask)], score_threshold=0.5
    )
    assert set(scores.per_class) == {"crack", "blowhole"}
    assert scores.per_class["crack"].pixel_ap == scores.per_class["crack"].cldice == 1.0
    missed = scores.per_class["blowhole"]
    assert (missed.segm_map, missed.pixel_ap, missed.iou, missed.dice, missed.cldice) == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert (missed.hausdorff, missed.hd95) == (1.0, 1.0)
    assert (scores.segm_map, scores.pixel_ap, scores.iou, scores.cldice) == pytest.approx((0.5, 0.5, 0.5, 0.5))


def test_a_wrong_class_is_right_where_all_classes_are_one() -> None:
    mask = rectangle(10, 10, 30, 20)
    scores = score_segmenter([record(1, (1, mask))], CATEGORIES, [result(1, 2, 0.9, mask)], score_threshold=0.5)
    assert (scores.segm_map, scores.pixel_ap, scores.plant.missed_defect_rate) == (0.0, 0.0, 0.0)
    assert (scores.pixel_ap_any_class, scores.pixel_f1_max_any_class) == (1.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_names_its_image(value: float) -> None:
    mask = rectangle(10, 10, 30, 20)
    results = [result(1, 1, 0.9, mask), result(2, 1, value, mask)]
    with pytest.raises(InputError, match=rf"^2\.png: a detection has the score {value}; train") as caught:
        score_segmenter([record(1, (1, mask)), record(2)], CATEGORIES, results, score_threshold=0.5)
    assert caught.value.exit_code == 2


def test_detections_of_another_image_or_size_are_refused() -> None:
    mask = rectangle(10, 10, 30, 20)
    with pytest.raises(InputError, match="on image 7, which is not one of the 1 images"):
        score_segmenter([record(1, (1, mask))], CATEGORIES, [result(7, 1, 0.9, mask)], score_threshold=0.5)
    with pytest.raises(InputError, match=r"^1\.png: a predicted mask is 92x60, the image is 60x92 \(height x width\)"):
        score_segmenter([record(1, (1, mask))], CATEGORIES, [result(1, 1, 0.9, mask.T)], score_threshold=0.5)


def test_a_segmenter_that_predicts_nothing_scores_zero_and_this_is_recorded() -> None:
    mask = rectangle(10, 10, 30, 20)
    scores = score_segmenter([record(1, (1, mask)), record(2)], CATEGORIES, [], score_threshold=0.5)
    assert (scores.num_predictions, scores.num_predictions_at_threshold) == (0, 0)
    zero = ("segm_map", "bbox_map", "ap50", "segm_ar100", "pixel_ap", "pixel_f1_max", "pixel_ap_any_class", "iou")
    zero += ("iou_matched", "dice", "boundary_f1_2px", "cldice")
    assert {key: getattr(scores, key) for key in zero} == dict.fromkeys(zero, 0.0)
    assert (scores.hausdorff, scores.hd95, scores.plant.missed_defect_rate) == (1.0, 1.0, 1.0)
    assert scores.plant.false_alarms_per_100_good_images == 0.0


def test_missed_instances_count_zero_for_iou_and_one_for_hausdorff() -> None:
    found, half, missed = rectangle(4, 4, 24, 14), rectangle(40, 20, 60, 30), rectangle(70, 40, 90, 50)
    records = [record(1, (1, found), (1, half)), record(2, (2, missed))]
    results = [result(1, 1, 0.9, found), result(1, 1, 0.8, rectangle(40, 20, 50, 30)), result(2, 1, 0.9, missed)]
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    assert scores.iou == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores.iou_matched == pytest.approx((1 + 0.5) / 2)
    assert scores.hausdorff == pytest.approx((0 + 10 / np.hypot(*SIZE_HW) + 1) / 3)
    assert scores.num_instances == 3


def test_a_prediction_serves_one_instance_and_the_best_one() -> None:
    left, right = rectangle(10, 10, 30, 20), rectangle(30, 10, 50, 20)
    both = rectangle(10, 10, 50, 20)
    scores = score_segmenter(
        [record(1, (1, left), (1, right))], CATEGORIES, [result(1, 1, 0.9, both)], score_threshold=0.5
    )
    assert scores.iou == pytest.approx(0.25)
    assert scores.iou_matched == pytest.approx(0.5)
    better = [result(1, 1, 0.99, both), result(1, 1, 0.6, left), result(1, 1, 0.6, right)]
    assert score_segmenter([record(1, (1, left), (1, right))], CATEGORIES, better, score_threshold=0.5).iou == 1.0


def test_weak_predictions_count_for_map_alone() -> None:
    mask = rectangle(10, 10, 30, 20)
    scores = score_segmenter([record(1, (1, mask))], CATEGORIES, [result(1, 1, 0.4, mask)], score_threshold=0.5)
    assert scores.segm_map == pytest.approx(1.0)
    assert (scores.iou, scores.hausdorff) == (0.0, 1.0)
    assert (
        score_segmenter([record(1, (1, mask))], CATEGORIES, [result(1, 1, 0.4, mask)], score_threshold=0.4).iou == 1.0
    )


def test_predictions_on_defect_free_images_lower_map() -> None:
    mask = rectangle(10, 10, 30, 20)
    records = [record(1, (1, mask)), record(2)]
    clean = score_segmenter(records, CATEGORIES, [result(1, 1, 0.7, mask)], score_threshold=0.5)
    noisy = score_segmenter(
        records, CATEGORIES, [result(1, 1, 0.7, mask), result(2, 1, 0.9, mask)], score_threshold=0.5
    )
    assert clean.segm_map == pytest.approx(1.0)
    assert noisy.segm_map == pytest.approx(0.5)


def test_crowds_are_neither_missed_nor_found_falsely() -> None:
    mask, crowd = rectangle(10, 10, 30, 20), rectangle(50, 30, 90, 55)
    records = [record(1, (1, mask)), record(2, crowds=((1, crowd),))]
    results = [result(1, 1, 0.9, mask), result(2, 1, 0.95, rectangle(52, 32, 80, 50))]
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    assert (scores.num_instances, scores.iou) == (1, 1.0)
    assert scores.segm_map == pytest.approx(1.0)


def test_empty_cases_are_zero_and_hausdorff_one() -> None:
    mask = rectangle(10, 10, 30, 20)
    nothing_found = score_segmenter([record(1, (1, mask))], CATEGORIES, [], score_threshold=0.5)
    assert (nothing_found.segm_map, nothing_found.iou, nothing_found.iou_matched, nothing_found.hausdorff) == (
        0.0,
        0.0,
        0.0,
        1.0,
    )
    assert nothing_found.per_class_segm_map == {"crack": 0.0}
    nothing_there = score_segmenter([record(1)], CATEGORIES, [result(1, 1, 0.9, mask)], score_threshold=0.5)
    assert (nothing_there.segm_map, nothing_there.iou, nothing_there.hausdorff, nothing_there.num_instances) == (
        0.0,
        0.0,
        1.0,
        0,
    )
    assert nothing_there.per_class_segm_map == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_pixel_ap_alone_is_that_of_all_scores(seed: int) -> None:
    records, results = random_scene(seed, with_crowds=True)
    whole = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    assert pixel_ap(records, CATEGORIES, results) == pytest.approx(whole.pixel_ap, abs=1e-12)
    assert pixel_ap(records, CATEGORIES, []) == 0.0
