"""Plant figures: what an inspector sees of a segmenter at a score threshold, and at every other one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.scores import PlantCurve, PlantScores
from defectory.evaluation.detection import SIZES, size_of
from defectory.evaluation.matching import touching_scores
from defectory.evaluation.scenes import Scene

CURVE_THRESHOLDS = tuple(step / 100 for step in range(101))
NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A true instance, and the score up to which it is found."""

    category_id: int
    size: str
    score: float
    """Score of the strongest detection that touches it; minus infinity without one."""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """An image as an inspector sees it; it is alarmed up to the score of its strongest detection."""

    score: float
    """Minus infinity without a detection."""
    is_good: bool
    """Whether the image has no label at all."""
    defects: tuple[Defect, ...]


def inspect(scene: Scene) -> Inspected:
    """Return at which scores an image is alarmed and its defects are found."""
    return Inspected(
        score=max((region.score for region in scene.found), default=NEVER),
        is_good=scene.record.is_defect_free,
        defects=tuple(
            Defect(category_id=region.category_id, size=size_of(region.area_px), score=score)
            for region, score in zip(scene.true, touching_scores(scene), strict=True)
        ),
    )


def score_plant(images: Sequence[Inspected], names: dict[int, str], *, score_threshold: float) -> PlantScores:
    """Score a segmenter as a plant would.

    An image is alarmed if it has a detection at or above the threshold. A defect is missed if no such detection, of
    whatever class, shares a pixel with it. An image with a crowd as its only label is neither good nor defective.

    Args:
        images: all images, inspected.
        names: class names by category id.
        score_threshold: score from which on a detection counts.

    Returns:
        The figures; a rate of nothing is None, such as false alarms without a good image.
    """
    defects = [defect for image in images for defect in image.defects]
    classes = sorted({defect.category_id for defect in defects})
    sizes = {size: [d.score for d in defects if d.size == size] for size in SIZES}
    missed = _sorted(defect.score for defect in defects)
    defective = _sorted(image.score for image in images if image.defects)
    good = _sorted(image.score for image in images if image.is_good)
    at = (score_threshold,)
    return PlantScores(
        missed_defect_rate=_first(_below(missed, at)),
        missed_image_rate=_first(_below(defective, at)),
        false_alarms_per_100_good_images=_first(_alarms(good, at)),
        per_class_missed_defect_rate={
            names[c]: _first(_below(_sorted(d.score for d in defects if d.category_id == c), at)) or 0.0
            for c in classes
        },
        missed_defect_rate_by_size={size: _first(_below(_sorted(scores), at)) for size, scores in sizes.items()},
        num_defects=len(defects),
        num_defects_by_size={size: len(scores) for size, scores in sizes.items()},
        num_defective_images=len(defective),
        num_good_images=len(good),
        curve=PlantCurve(
            score_thresholds=CURVE_THRESHOLDS,
            missed_defect_rate=_below(missed, CURVE_THRESHOLDS),
            missed_image_rate=_below(defective, CURVE_THRESHOLDS),
            false_alarms_per_100_good_images=_alarms(good, CURVE_THRESHOLDS),
        ),
    )


def _sorted(scores: Iterable[float]) -> NDArray[np.float64]:
    return np.sort(np.array(list(scores), np.float64))


def _below(scores: NDArray[np.float64], thresholds: Sequence[float]) -> tuple[float, ...] | None:
    """Return the share of sorted scores below each threshold; None without a score."""
    if not len(scores):
        return None
    return tuple((np.searchsorted(scores, thresholds, side="left") / len(scores)).tolist())


def _alarms(scores: NDArray[np.float64], thresholds: Sequence[float]) -> tuple[float, ...] | None:
    """Return how many of 100 sorted scores reach each threshold; None without a score."""
    if not len(scores):
        return None
    reach = len(scores) - np.searchsorted(scores, thresholds, side="left")
    return tuple((100 * reach / len(scores)).tolist())


def _first(values: tuple[float, ...] | None) -> float | None:
    return None if values is None else values[0]
