from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from defectory.evaluation.pixels import PixelCounts, count_pixels, score_pixels
from defectory.evaluation.scenes import scenes_of

from .random_scenes import SEEDS, SIZE_HW, masks_of, random_scene, record, rectangle, result, true_masks_of


def counts_of(records: list[Any], results: list[dict[str, Any]], category_id: int | None) -> list[PixelCounts]:
    def of(regions: Any) -> list[Any]:
        return [region for region in regions if category_id in (None, region.category_id)]

    return [
        count_pixels(scene.record.size_hw, of(scene.true), of(scene.crowds), of(scene.found))
        for scene in scenes_of(records, results)
    ]


def maps_of(records: list[Any], results: list[dict[str, Any]], category_id: int | None) -> tuple[Any, Any]:
    """Truth and score of every pixel that counts, from maps of whole images."""
    truths, scores = [], []
    for one in records:
        truth, crowd, score = (np.zeros(one.size_hw, kind) for kind in (bool, bool, float))
        for label, mask in true_masks_of(one):
            truth |= mask & (category_id in (None, label))
        for label, mask in true_masks_of(one, crowds=True):
            crowd |= mask & (category_id in (None, label))
        for label, value, mask in masks_of(results, one.id):
            if category_id in (None, label):
                score = np.where(mask, np.maximum(score, value), score)
        counts = truth | ~crowd
        truths.append(truth[counts])
        scores.append(score[counts])
    return np.concatenate(truths), np.concatenate(scores)


@pytest.mark.parametrize("with_crowds", [False, True])
@pytest.mark.parametrize("category_id", [1, 2, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_average_precision_and_best_f1_are_scikit_learns(seed: int, category_id: int | None, with_crowds: bool) -> None:
    records, results = random_scene(seed, with_crowds=with_crowds)
    scores = score_pixels(counts_of(records, results, category_id))
    assert scores is not None
    truth, score = maps_of(records, results, category_id)
    assert scores.ap == pytest.approx(average_precision_score(truth, score), abs=1e-9)
    precision, recall, thresholds = precision_recall_curve(truth, score)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    assert scores.f1_max == pytest.approx(f1[thresholds > 0].max(), abs=1e-9)


def test_the_strongest_detection_decides_where_two_overlap() -> None:
    mask = rectangle(10, 10, 30, 20)
    records = [record(1, (1, mask))]
    # the weak detection covers the strong one and much more, which must not lower the score of the true pixels
    results = [result(1, 1, 0.9, mask), result(1, 1, 0.2, rectangle(5, 5, 60, 40))]
    scores = score_pixels(counts_of(records, results, 1))
    assert scores is not None
    assert (scores.ap, scores.f1_max) == (1.0, 1.0)


def test_false_detections_on_good_images_count() -> None:
    mask = rectangle(10, 10, 30, 20)
    results = [result(1, 1, 0.7, mask), result(2, 1, 0.9, mask)]
    scores = score_pixels(counts_of([record(1, (1, mask)), record(2)], results, 1))
    assert scores is not None
    assert (scores.ap, scores.f1_max) == pytest.approx((0.5, 2 / 3))


def test_without_a_detection_pixel_scores_are_zero_and_without_truth_there_are_none() -> None:
    mask = rectangle(10, 10, 30, 20)
    silent = score_pixels(counts_of([record(1, (1, mask))], [], 1))
    assert silent is not None
    assert (silent.ap, silent.f1_max) == (0.0, 0.0)
    assert score_pixels(counts_of([record(1, (1, mask))], [result(1, 2, 0.9, mask)], 2)) is None


def test_an_image_full_of_defect_is_counted() -> None:
    full = np.ones(SIZE_HW, bool)
    scores = score_pixels(counts_of([record(1, (1, full))], [result(1, 1, 0.9, full)], 1))
    assert scores is not None
    assert (scores.ap, scores.f1_max) == (1.0, 1.0)
