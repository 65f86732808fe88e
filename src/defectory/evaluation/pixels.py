"""Average precision and best F1 of pixels, from counts by the distinct scores of the detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.evaluation.scenes import Region, groups_of, mask_within, rows_and_columns, union_box


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelCounts:
    """An image's pixels, counted by the score of the strongest detection that covers them."""

    scores: NDArray[np.float64]
    """Scores of the detections [N]."""
    right_px: NDArray[np.int64]
    """Defect pixels of each score [N]."""
    wrong_px: NDArray[np.int64]
    """Other pixels of each score [N]."""
    num_true_px: int
    """Defect pixels, covered or not."""
    num_px: int
    """All pixels that count."""


@dataclass(frozen=True, kw_only=True)
class PixelScores:
    """How well the scores of pixels separate defect from other pixels, 0..1."""

    ap: float
    f1_max: float


def count_pixels(
    size_hw: tuple[int, int], true: Sequence[Region], crowds: Sequence[Region], found: Sequence[Region]
) -> PixelCounts:
    """Count an image's pixels by score, exactly and without a map of the whole image.

    Args:
        size_hw: size of the image.
        true: true instances that count as one class.
        crowds: their pixels do not count, except where they are true as well.
        found: detections of that class.
    """
    every = [*true, *crowds, *found]
    last_true, last_crowd = len(true), len(true) + len(crowds)
    right, wrong = np.zeros(len(found), np.int64), np.zeros(len(found), np.int64)
    num_true, num_left_out = 0, 0
    for group in groups_of(every):
        here = [place - last_crowd for place in group if place >= last_crowd]
        labels = [every[place] for place in group if place < last_true]
        others = [every[place] for place in group if last_true <= place < last_crowd]
        if len(here) + len(labels) + len(others) == 1 and not others:
            # nothing overlaps: all pixels are missed or all are wrong
            num_true += sum(region.area_px for region in labels)
            for place in here:
                wrong[place] = found[place].area_px
            continue
        box = union_box([every[place] for place in group])
        truth = mask_within(labels, box)
        left_out = mask_within(others, box) & ~truth
        num_true += int(np.count_nonzero(truth))
        num_left_out += int(np.count_nonzero(left_out))
        strongest = np.zeros(truth.shape, np.intp)
        here.sort(key=lambda place: found[place].score)
        for rank, place in enumerate(here, start=1):
            strongest[rows_and_columns(found[place], box)][found[place].crop] = rank
        strongest[left_out] = 0
        counts = np.bincount((2 * strongest + truth).ravel(), minlength=2 * len(here) + 2)
        for rank, place in enumerate(here, start=1):
            wrong[place], right[place] = counts[2 * rank], counts[2 * rank + 1]
    return PixelCounts(
        scores=np.array([region.score for region in found], np.float64),
        right_px=right,
        wrong_px=wrong,
        num_true_px=num_true,
        num_px=size_hw[0] * size_hw[1] - num_left_out,
    )


def score_pixels(counts: Sequence[PixelCounts]) -> PixelScores | None:
    """Score the pixels of all images together.

    Average precision is scikit-learn's: the sum over distinct scores of the gain in recall times precision. Pixels that
    no detection covers come last, all at once. The best F1 is over the detections' scores.

    Args:
        counts: of every image, defect-free ones included.

    Returns:
        The scores; both are 0 without a detection, and None stands for no defect pixel at all.
    """
    num_true, num_px = sum(c.num_true_px for c in counts), sum(c.num_px for c in counts)
    if not num_true:
        return None
    scores = np.concatenate([c.scores for c in counts])
    if not len(scores):
        return PixelScores(ap=0.0, f1_max=0.0)
    _, names = np.unique(-scores, return_inverse=True)
    right = _sums(names, np.concatenate([c.right_px for c in counts]))
    covered = right + _sums(names, np.concatenate([c.wrong_px for c in counts]))
    recall, precision = right / num_true, right / np.maximum(covered, 1)
    ap = float(np.sum(np.diff(recall, prepend=0.0) * precision)) + (1.0 - float(recall[-1])) * num_true / num_px
    return PixelScores(ap=ap, f1_max=float((2 * right / (covered + num_true)).max()))


def _sums(names: NDArray[np.intp], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the running sum of whole numbers over names 0, 1, 2, ..."""
    totals = np.zeros(int(names.max()) + 1, np.int64)
    np.add.at(totals, names, values)
    return np.cumsum(totals)
