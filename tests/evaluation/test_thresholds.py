from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from defectory.evaluation.thresholds import best_pixel_threshold, best_score_threshold

from .random_scenes import SEEDS, masks_of, random_scene, record, rectangle, result, true_masks_of

LEFT, RIGHT, NOWHERE = rectangle(2, 2, 12, 12), rectangle(20, 20, 30, 30), rectangle(40, 2, 44, 6)
Scene = tuple[Any, Any]


def f1_of_defects(scene: Scene, threshold: float) -> float:
    records, results = scene
    right = 0
    for one in records:
        left = true_masks_of(one)
        for category_id, _, mask in sorted(masks_of(results, one.id, least=threshold), key=lambda row: -row[1]):
            overlap = [
                (mask & other).sum() / (mask | other).sum() if label == category_id else 0.0 for label, other in left
            ]
            if overlap and max(overlap) >= 0.5:
                left.pop(int(np.argmax(overlap)))
                right += 1
    num_found = sum(row["score"] >= threshold for row in results)
    return 2 * right / max(1, num_found + sum(len(true_masks_of(one)) for one in records))


def f1_of_pixels(scene: Scene, threshold: float) -> float:
    records, results = scene
    right = wrong = missed = 0
    for one in records:
        nothing = np.zeros(one.size_hw, bool)
        truth = np.any([nothing, *(mask for _, mask in true_masks_of(one))], axis=0)
        found = np.any([nothing, *(mask for _, _, mask in masks_of(results, one.id, least=threshold))], axis=0)
        right += int((truth & found).sum())
        wrong += int((found & ~truth).sum())
        missed += int((truth & ~found).sum())
    return 2 * right / max(1, 2 * right + wrong + missed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("choose", "f1"), [(best_score_threshold, f1_of_defects), (best_pixel_threshold, f1_of_pixels)]
)
def test_f1_around_the_threshold_is_the_best_of_all(
    choose: Callable[..., float], f1: Callable[[Scene, float], float], seed: int
) -> None:
    scene = random_scene(seed)
    logits = [step / 20 for step in range(-60, 141)]
    # F1 changes at scores alone
    steps = sorted({float(row["score"]) for row in scene[1]})
    known = {step: f1(scene, step) for step in steps}
    every = [next((known[step] for step in steps if step >= 1 / (1 + math.exp(-logit))), 0.0) for logit in logits]

    def mean_around(place: float) -> float:
        weights = [math.exp(-((logit - place) ** 2) / (2 * 0.5**2)) for logit in logits]
        return sum(w * value for w, value in zip(weights, every, strict=True)) / sum(weights)

    chosen = choose(*scene)
    assert mean_around(math.log(chosen / (1 - chosen))) == pytest.approx(max(map(mean_around, logits)))


def test_the_threshold_lies_between_what_is_right_and_what_is_not() -> None:
    records = [record(1, (1, LEFT), (1, RIGHT)), record(2, (2, LEFT))]
    results = [
        result(1, 1, 0.9, LEFT),
        result(1, 1, 0.6, RIGHT),
        result(2, 2, 0.4, LEFT),
        result(1, 1, 0.2, NOWHERE),
        result(2, 2, 0.1, NOWHERE),
    ]
    assert 0.2 < best_score_threshold(records, results) < 0.4
    # 16 pixels of 316 are wrong below .2
    assert 0.15 < best_pixel_threshold(records, results) < 0.4


def test_a_good_score_that_holds_beats_a_better_one_by_chance() -> None:
    records = [record(1, (1, LEFT), (1, RIGHT))]
    masks = {0.5: LEFT, 0.49: RIGHT, 0.48: NOWHERE, 0.47: np.roll(NOWHERE, 20, 0)}
    results = [result(1, 1, score, mask) for score, mask in masks.items()]
    scene = records, results
    assert [round(f1_of_defects(scene, at), 2) for at in (0.495, 0.485, 0.475, 0.46, 0.1)] == [
        0.67,
        1.0,
        0.8,
        0.67,
        0.67,
    ]
    # a threshold of .485 would lie between two scores that another image may turn around
    assert best_score_threshold(*scene) < 0.47


@pytest.mark.parametrize("choose", [best_score_threshold, best_pixel_threshold])
def test_where_nothing_is_right_the_threshold_is_a_half(choose: Callable[..., float]) -> None:
    assert choose([record(1, (1, LEFT))], []) == 0.5
    assert choose([record(1)], [result(1, 1, 0.9, LEFT)]) == 0.5
    assert choose([record(1, (1, LEFT))], [result(1, 1, 0.9, NOWHERE)]) == 0.5


def test_pixels_may_be_right_where_no_defect_is() -> None:
    thin = rectangle(20, 2, 21, 40)
    records, results = [record(1, (1, thin))], [result(1, 1, 0.8, rectangle(20, 2, 21, 12))]
    assert best_score_threshold(records, results) == 0.5
    assert 0 < best_pixel_threshold(records, results) < 0.5
