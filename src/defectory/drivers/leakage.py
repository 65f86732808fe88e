"""Whether a driver gives away that its source image had a defect (paper's invariant, section 3.2).

A real crack can darken the binary map beside its mask. A simple classifier looks at the dim geometry around masks:
around the true masks of defective tiles, and around the same masks laid on defect-free ones. Under a mask nothing can
leak, it is painted over.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Geometry = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]
RINGS_PX = (0, 2, 5, 9, 14)
FOLDS = 5
MAX_AUC = 0.65
"""Area under the curve above which drivers count as leaking."""


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Area under the ROC curve of `had a defect` against `had none`, 0.5 is no leak, with a 95% bootstrap interval."""

    auc: float
    interval: tuple[float, float]
    num_defective: int
    num_defect_free: int


def leakage(
    defective: Sequence[tuple[Geometry, Mask]],
    defect_free: Sequence[tuple[Geometry, Mask]],
    *,
    groups: Sequence[str] | None = None,
    seed: int,
    num_bootstrap: int = 200,
) -> Leakage | None:
    """Measure leakage by a cross-validated logistic regression (scikit-learn's, with its default ridge).

    Args:
        defective: dim geometry uint8 [H,W] (mask not painted) and label mask bool [H,W] of annotated tiles.
        defect_free: the same of defect-free tiles, each with the mask of a defective tile laid on it before extraction.
        groups: of each defective tile, then of each defect-free one. Tiles of one group share a fold, so that knowing a
            part again counts for nothing. None: each tile is a group of its own.
        seed: of folds and bootstrap.
        num_bootstrap: resamples.

    Returns:
        None where there are fewer than ten tiles of either kind, or fewer than five groups with either.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(defective), len(defect_free)) < 2 * FOLDS:
        return None
    of = np.array(range(len(defective) + len(defect_free)) if groups is None else groups)
    if min(len(set(of[: len(defective)].tolist())), len(set(of[len(defective) :].tolist()))) < FOLDS:
        return None
    x = np.array([features(geometry, mask) for geometry, mask in [*defective, *defect_free]])
    y = np.array([1] * len(defective) + [0] * len(defect_free))
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    scores = np.asarray(
        cross_val_predict(classifier, x, y, groups=of, cv=folds, method="decision_function"), np.float64
    )
    low, high = np.quantile(bootstrap_aucs(scores, y, seed=seed, count=num_bootstrap), [0.025, 0.975])
    return Leakage(
        auc=float(roc_auc_score(y, scores)),
        interval=(float(low), float(high)),
        num_defective=len(defective),
        num_defect_free=len(defect_free),
    )


def bootstrap_aucs(scores: Matrix, labels: NDArray[np.int64], *, seed: int, count: int) -> list[float]:
    """Compute the area under the ROC curve of resamples of the tiles; those of one kind alone are left out.

    All share one table of which defective tile outscores which defect-free one: 200 calls of `roc_auc_score` take
    0.3 s, this takes 5 ms, and `drivers tune` measures some 50 candidates.
    """
    rng = np.random.default_rng([81, seed])
    defective, free = scores[labels == 1][:, None], scores[labels == 0][None]
    wins = (defective > free) + 0.5 * (defective == free)
    found: list[float] = []
    for _ in range(count):
        times = np.bincount(rng.integers(len(labels), size=len(labels)), minlength=len(labels))
        of_defective, of_free = times[labels == 1], times[labels == 0]
        if of_defective.any() and of_free.any():
            found.append(float(of_defective @ wins @ of_free / (of_defective.sum() * of_free.sum())))
    return found


def features(geometry: Geometry, mask: Mask) -> list[float]:
    """Return the share of dark geometry in rings around a mask, each relative to the whole tile's outside the mask."""
    dark = geometry < max(1, int(geometry.max())) / 2
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    overall = float(dark[~mask].mean()) if not mask.all() else 0.0
    values: list[float] = []
    for inner, outer in itertools.pairwise(RINGS_PX):
        ring = (distance > inner) & (distance <= outer)
        values.append(float(dark[ring].mean()) - overall if ring.any() else 0.0)
    return values
