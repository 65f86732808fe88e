"""Measures of shape: Hausdorff distances, F1 of borders and clDice of skeletons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.evaluation.scenes import Region, groups_of, mask_within, union_box

Mask = NDArray[np.bool_]
TOLERANCE_PX = 2
"""A border pixel at most this far from the other border is right."""
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_DISC = (
    np.hypot(*np.mgrid[-TOLERANCE_PX : TOLERANCE_PX + 1, -TOLERANCE_PX : TOLERANCE_PX + 1]) <= TOLERANCE_PX
).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances in pixels between two masks; infinite if only one of them is empty, 0 if both are."""

    hausdorff_px: float
    """Largest distance from a pixel of one mask to the nearest pixel of the other."""
    hd95_px: float
    """The 95% quantile of the distances from one border to the other, the larger one of both directions."""


@dataclass(frozen=True, kw_only=True)
class ThinScores:
    """Scores of one class in one image that forgive a shift of a line's width, 0..1."""

    boundary_f1_2px: float
    cldice: float


def border_of(mask: Mask) -> Mask:
    """Return the pixels of a mask bool [H,W] with a side at a pixel outside it or at the edge of the image."""
    inside = cv2.erode(mask.astype(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inside == 0)


def distances(first: Mask, second: Mask) -> Distances:
    """Measure Hausdorff distances between two masks bool [H,W], which may be cut to the box around both."""
    if not first.any() or not second.any():
        apart = float("inf") if first.any() or second.any() else 0.0
        return Distances(hausdorff_px=apart, hd95_px=apart)
    one, two = border_of(first), border_of(second)
    to_one, to_two = _distance_to(one), _distance_to(two)
    # a pixel outside a mask is nearest to the mask's border
    outside = np.concatenate([to_two[first & ~second], to_one[second & ~first]])
    return Distances(
        hausdorff_px=_exact(float(outside.max())) if outside.size else 0.0,
        hd95_px=max(_quantile_95(to_two[one]), _quantile_95(to_one[two])),
    )


def distances_between(first: Region, second: Region) -> Distances:
    """Measure Hausdorff distances between two regions of one image."""
    box = union_box([first, second])
    return distances(mask_within([first], box), mask_within([second], box))


def score_thin(true: Sequence[Region], found: Sequence[Region]) -> ThinScores:
    """Score the union of the detections of a class against the union of its true instances, in one image.

    Args:
        true: true instances.
        found: detections at the score threshold.
    """
    every = [*true, *found]
    border, skeleton = np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64)
    for group in groups_of(every, gap_px=TOLERANCE_PX):
        box = union_box([every[place] for place in group])
        truth = mask_within([every[place] for place in group if place < len(true)], box)
        drawn = mask_within([every[place] for place in group if place >= len(true)], box)
        borders = border_of(drawn), border_of(truth)
        border += _counted(borders, (_grown(borders[1]), _grown(borders[0])))
        skeleton += _counted((skeleton_of(drawn), skeleton_of(truth)), (truth, drawn))
    return ThinScores(boundary_f1_2px=_harmonic(border), cldice=_harmonic(skeleton))


def _counted(pixels: tuple[Mask, Mask], right: tuple[Mask, Mask]) -> NDArray[np.int64]:
    """Count the pixels of detections and truth that are right, and all of them, int64 [2,2]."""
    return np.array(
        [[np.count_nonzero(of & at), np.count_nonzero(of)] for of, at in zip(pixels, right, strict=True)], np.int64
    )


def skeleton_of(mask: Mask) -> Mask:
    """Return the skeleton of a mask bool [H,W], one pixel wide."""
    from skimage.morphology import skeletonize

    if not mask.any():
        return mask
    return np.asarray(skeletonize(mask), bool)


def _grown(border: Mask) -> Mask:
    """Return the pixels at most 2 px away from a border."""
    return cv2.dilate(border.astype(np.uint8), _DISC, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def _distance_to(border: Mask) -> NDArray[np.float32]:
    return np.asarray(cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _exact(distance_px: float) -> float:
    """Return a distance between pixels without the rounding of 32-bit numbers; its square is whole."""
    return float(np.sqrt(np.rint(distance_px * distance_px)))


def _quantile_95(values: NDArray[np.float32]) -> float:
    """Return the 95% quantile, linearly interpolated; numpy's own takes most of the time on small arrays."""
    place = 0.95 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    ordered = np.partition(values, (low, high))
    below, above = _exact(float(ordered[low])), _exact(float(ordered[high]))
    return below + (place - low) * (above - below)


def _harmonic(counts: NDArray[np.int64]) -> float:
    """Return the harmonic mean of the shares right / all of detections and truth; 0 if either is 0 or empty."""
    precision, recall = (float(right / num) if num else 0.0 for right, num in counts)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
