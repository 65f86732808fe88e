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
from scipy.stats import rankdata

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
    seed: int,
    num_bootstrap: int = 200,
) -> Leakage | None:
    """Measure leakage by a cross-validated logistic regression.

    Args:
        defective: dim geometry uint8 [H,W] (mask not painted) and label mask bool [H,W] of annotated tiles.
        defect_free: the same of defect-free tiles, each with the mask of a defective tile laid on it before extraction.
        seed: of folds and bootstrap.
        num_bootstrap: resamples.

    Returns:
        None where there are fewer than ten tiles of either kind.
    """
    if min(len(defective), len(defect_free)) < 2 * FOLDS:
        return None
    rng = np.random.default_rng([81, seed])
    rows = [features(geometry, mask) for geometry, mask in [*defective, *defect_free]]
    x, y = np.array(rows), np.array([1] * len(defective) + [0] * len(defect_free))
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
    scores = np.zeros(len(y))
    fold = rng.permutation(np.arange(len(y)) % FOLDS)
    for index in range(FOLDS):
        train = fold != index
        scores[~train] = predict(fit_logistic(x[train], y[train]), x[~train])
    samples: list[float] = []
    for _ in range(num_bootstrap):
        chosen = rng.integers(len(y), size=len(y))
        if 0 < y[chosen].sum() < len(y):
            samples.append(auc(scores[chosen], y[chosen]))
    low, high = np.quantile(samples, [0.025, 0.975])
    return Leakage(
        auc=auc(scores, y),
        interval=(float(low), float(high)),
        num_defective=len(defective),
        num_defect_free=len(defect_free),
    )


def features(geometry: Geometry, mask: Mask) -> list[float]:
    """Give the share of dark geometry in rings around a mask, each relative to the whole tile's outside the mask."""
    dark = geometry < max(1, int(geometry.max())) / 2
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    overall = float(dark[~mask].mean()) if not mask.all() else 0.0
    values: list[float] = []
    for inner, outer in itertools.pairwise(RINGS_PX):
        ring = (distance > inner) & (distance <= outer)
        values.append(float(dark[ring].mean()) - overall if ring.any() else 0.0)
    return values


def fit_logistic(x: Matrix, y: NDArray[np.int64], *, ridge: float = 1.0, num_steps: int = 30) -> Matrix:
    """Fit a logistic regression with an intercept by Newton's method; float64 weights [1+D]."""
    x = np.column_stack([np.ones(len(x)), x])
    weights = np.zeros(x.shape[1])
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 1e-6
    for _ in range(num_steps):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + penalty @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def predict(weights: Matrix, x: Matrix) -> Matrix:
    """Give log-odds, float64 [N]."""
    return x @ weights[1:] + weights[0]


def auc(scores: Matrix, labels: NDArray[np.int64]) -> float:
    """Give the area under the ROC curve by ranks; ties count half."""
    positive = labels == 1
    count = int(positive.sum())
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))
