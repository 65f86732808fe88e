from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from defectory.evaluation.matching import match_instances, pair_ious, touching_scores, without_crowds
from defectory.evaluation.scenes import scenes_of

from .random_scenes import SEEDS, masks_of, random_scene, record, rectangle, result, true_masks_of


@pytest.mark.parametrize("seed", SEEDS)
def test_iou_and_dice_are_those_of_torchmetrics(seed: int) -> None:
    records, results = random_scene(seed)
    num_pairs = 0
    for scene in scenes_of(records, results):
        true, found = true_masks_of(scene.record), masks_of(results, scene.record.id)
        ious = pair_ious(scene.true, scene.found)
        for t, (label, mask) in enumerate(true):
            for f, (category_id, _, other) in enumerate(found):
                shared = label == category_id and bool((mask & other).any())
                assert ((t, f) in ious) == shared
                if shared:
                    pair = torch.from_numpy(other).int(), torch.from_numpy(mask).int()
                    iou = float(binary_jaccard_index(*pair))
                    assert ious[t, f] == pytest.approx(iou, abs=1e-6)
                    # Dice of two masks is the F1 of their pixels
                    assert 2 * iou / (1 + iou) == pytest.approx(float(binary_f1_score(*pair)), abs=1e-6)
                    num_pairs += 1
    assert num_pairs > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_the_pair_with_the_highest_iou_matches_first_and_nothing_twice(seed: int) -> None:
    records, results = random_scene(seed)
    for scene in scenes_of(records, results):
        left = dict(pair_ious(scene.true, scene.found))
        expected = [0.0] * len(scene.true)
        while left and max(left.values()) >= 0.1:
            t, f = max(left, key=lambda key: left[key])
            expected[t] = left[t, f]
            left = {key: value for key, value in left.items() if key[0] != t and key[1] != f}
        matches = match_instances(scene, scene.found)
        assert [match.iou for match in matches] == pytest.approx(expected)
        assert [match.dice for match in matches] == pytest.approx([2 * iou / (1 + iou) for iou in expected])
        assert all(match.hausdorff == match.hd95 == 1.0 for match in matches if not match.iou)
        assert all(match.hausdorff < 1.0 for match in matches if match.iou)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_strongest_touching_detection_is_that_of_whole_masks(seed: int) -> None:
    records, results = random_scene(seed)
    for scene in scenes_of(records, results):
        found = masks_of(results, scene.record.id)
        expected = [
            max((score for _, score, other in found if (mask & other).any()), default=float("-inf"))
            for _, mask in true_masks_of(scene.record)
        ]
        assert touching_scores(scene) == expected


def test_distances_are_shares_of_the_diagonal() -> None:
    true, found = rectangle(40, 20, 60, 30), rectangle(40, 20, 50, 30)
    scene = next(scenes_of([record(1, (1, true))], [result(1, 1, 0.9, found)]))
    (match,) = match_instances(scene, scene.found)
    assert match.hausdorff == pytest.approx(10 / np.hypot(60, 92))
    assert 0 < match.hd95 <= match.hausdorff


def test_a_detection_mostly_in_a_crowd_of_its_class_does_not_count() -> None:
    crowd = rectangle(10, 10, 40, 30)
    results = [
        result(1, 1, 0.9, rectangle(10, 10, 30, 20)),
        result(1, 1, 0.8, rectangle(36, 10, 50, 20)),
        result(1, 2, 0.7, rectangle(10, 10, 30, 20)),
    ]
    scene = next(scenes_of([record(1, crowds=((1, crowd),))], results))
    assert [region.score for region in without_crowds(scene, scene.found)] == [0.8, 0.7]
