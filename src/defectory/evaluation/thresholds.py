"""Chooses the score threshold of a segmenter on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.matching import pair_ious
from defectory.evaluation.pixels import count_pixels
from defectory.evaluation.scenes import detection, scenes_of

LOGITS = np.linspace(-3, 7, 201)
"""Of the thresholds that are compared: from .05, below which nothing is predicted, to .999."""
THRESHOLDS = 1 / (1 + np.exp(-LOGITS))
NEAR_LOGITS = 0.5
"""Standard deviation by which neighbouring thresholds count."""


def best_score_threshold(
    images: Sequence[ImageRecord], results: Sequence[Mapping[str, Any]], *, min_iou: float = 0.5
) -> float:
    """Return the score threshold around which F1 on whole images is best; 0.5 if no detection is correct.

    Detections are matched in descending order of score, each with the unused true instance of its class that it
    overlaps most. F1 is averaged over neighbouring thresholds, as `_steadiest` says.

    Args:
        images: true records of validation.
        results: COCO results with RLE.
        min_iou: minimum IoU of a correct detection.
    """
    left = {scene.record.id: list(scene.true) for scene in scenes_of(images, ())}
    num_true = sum(len(true) for true in left.values())
    ranked = sorted((r for r in results if int(r["image_id"]) in left), key=lambda r: -float(r["score"]))
    is_right: list[bool] = []
    for result in ranked:
        candidates = left[int(result["image_id"])]
        overlap = {t: value for (t, _), value in pair_ious(candidates, [detection(result)]).items()}
        is_right.append(bool(overlap) and max(overlap.values()) >= min_iou)
        if is_right[-1]:
            candidates.pop(max(overlap, key=lambda t: overlap[t]))
    scores = np.array([float(result["score"]) for result in ranked])
    num_right = np.array(is_right, np.int64)
    return _steadiest(scores, num_right, np.ones_like(num_right), num_true)


def best_pixel_threshold(images: Sequence[ImageRecord], results: Sequence[Mapping[str, Any]]) -> float:
    """Return the score threshold around which F1 of pixels, all classes taken as one, is best; 0.5 if none is right.

    A pixel's score is that of the strongest detection that covers it. F1 is averaged over neighbouring thresholds, as
    `_steadiest` says.

    Args:
        images: true records of validation.
        results: COCO results with RLE.
    """
    counts = [
        count_pixels(scene.record.size_hw, scene.true, scene.crowds, scene.found)
        for scene in scenes_of(images, results)
    ]
    scores = np.concatenate([np.zeros(0), *(of.scores for of in counts)])
    right_px = np.concatenate([np.zeros(0, np.int64), *(of.right_px for of in counts)])
    covered_px = right_px + np.concatenate([np.zeros(0, np.int64), *(of.wrong_px for of in counts)])
    return _steadiest(scores, right_px, covered_px, sum(of.num_true_px for of in counts))


def _steadiest(
    scores: NDArray[np.float64], num_right: NDArray[np.int64], num_found: NDArray[np.int64], num_true: int
) -> float:
    """Return the threshold with the best mean F1 of the thresholds around it; 0.5 if nothing is right at any.

    A few validation images hold a dozen defects, so the single best threshold is a matter of luck, and F1 may fall
    right beside it. Thresholds are weighed by a Gaussian of their distance in logits.

    Args:
        scores: of each detection.
        num_right: of what each finds, the part that is right.
        num_found: all of what each finds.
        num_true: of what there is to find.
    """
    order = np.argsort(-scores, kind="stable")
    # how many detections reach each threshold
    reach = np.searchsorted(-scores[order], -THRESHOLDS, side="right")
    right = np.concatenate([[0], num_right[order].cumsum()])[reach]
    found = np.concatenate([[0], num_found[order].cumsum()])[reach]
    if not right.any():
        return 0.5
    weights = np.exp(-(((LOGITS[:, None] - LOGITS) / NEAR_LOGITS) ** 2) / 2)
    f1 = weights @ (2 * right / np.maximum(found + num_true, 1)) / weights.sum(axis=1)
    return float(THRESHOLDS[np.argmax(f1)])
