"""Intervals of arms' scores and of their differences, over folds, seeds and groups of test images.

Resamples draw groups of test images, the same for every arm and seed. Seeds are few, and drawing three of three says
little, so their part of the variance is estimated instead, and Student's t makes up for how few there are (decision
049).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from defectory.errors import InputError
from defectory.evaluation.match_tables import MatchTable, segm_map

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T")
LEVEL = 0.95
"""Confidence level of every interval."""
NUM_RESAMPLES = 1000
SHARES = (0.0, 1.0)
"""What the mean of a score that is a share can be."""


@dataclass(frozen=True, kw_only=True)
class TestScores:
    """Scores of all arms on one test part; of several folds, each has its own.

    A seed draws everything that chance decides in a training, and has the same position in every arm.

    Attributes:
        arms: names.
        per_seed: float [arms, seeds].
        resampled: scores on resampled groups of test images, the same groups for every arm and seed, float [arms,
            seeds, resamples]; None if only scores are known, so that test images count as fixed.
        num_groups: groups of test images with a true instance; 0 if not known.
        num_images: test images; 0 if not known.
    """

    __test__ = False  # pytest takes the name for a test class

    arms: tuple[str, ...]
    per_seed: Floats
    resampled: Floats | None = None
    num_groups: int = 0
    num_images: int = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the variance of a mean, and from how many degrees of freedom it is known."""

    variance: float = 0.0
    degrees: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with the parts of its variance.

    Attributes:
        mean: over seeds and folds.
        seeds: from which seeds were drawn.
        groups: from which test images were drawn.
        folds: from differences between folds that the two others do not explain.
    """

    mean: float
    seeds: Part
    groups: Part
    folds: Part

    @property
    def error(self) -> float:
        """Return the standard error."""
        return float(np.sqrt(self.seeds.variance + self.groups.variance + self.folds.variance))

    def half_width(self, level: float = LEVEL) -> float:
        """Return half of the width of the interval; infinite if there is nothing to tell the variance from.

        Each part has a half-width of its own by Student's t, and their squares add up.
        """
        parts = [part for part in (self.seeds, self.groups, self.folds) if part.degrees > 0]
        if not parts:
            return float("inf")
        return float(np.sqrt(sum(t_quantile(level, part.degrees) ** 2 * part.variance for part in parts)))

    def interval(
        self, level: float = LEVEL, *, within: tuple[float, float] = (-math.inf, math.inf)
    ) -> tuple[float, float]:
        """Return the interval.

        Args:
            level: of confidence.
            within: values that the mean can have; the interval is cut there.
        """
        half, (least, most) = self.half_width(level), within
        return max(self.mean - half, least), min(self.mean + half, most)

    def p_value(self) -> float:
        """Return 1 less the level at which the interval just reaches zero; 1 if there is no interval."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.half_width(1 - middle) > abs(self.mean) else (low, middle)
        return high


def t_quantile(level: float, degrees: float) -> float:
    """Return the factor by which a standard error becomes half of a two-sided interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))


def scores_of_seeds(per_seed: Mapping[str, Sequence[float]]) -> TestScores:
    """Build test scores of which only each seed's figure is known.

    Raises:
        InputError: arms differ in their number of seeds, or a score is not a finite number.
    """
    counts = {arm: len(scores) for arm, scores in per_seed.items()}
    if len(set(counts.values())) > 1:
        found = "seeds are " + ", ".join(f"{count} of {arm}" for arm, count in counts.items())
        raise InputError("scores", found, "train every arm with the same seeds")
    for arm, scores in per_seed.items():
        for number, score in enumerate(scores):
            if not np.isfinite(score):
                raise InputError(f"arm {arm}", f"the score of seed number {number + 1} is {score}", "train it again")
    shape = (len(counts), max(counts.values(), default=0))
    return TestScores(arms=tuple(per_seed), per_seed=np.array(list(per_seed.values()), np.float64).reshape(shape))


def scores_of_tables(
    tables: Mapping[str, Sequence[MatchTable]],
    groups: Sequence[str],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> TestScores:
    """Compute segm mAP of every arm and seed; see `resampled_scores`."""
    first = next((table for of in tables.values() for table in of), None)
    has_defects = np.zeros(len(groups), bool)
    for matches in first.classes.values() if first is not None else ():
        has_defects |= matches.num_true > 0
    return resampled_scores(tables, segm_map, groups, has_defects=has_defects, seed=seed, num_resamples=num_resamples)


def resampled_scores(
    tables: Mapping[str, Sequence[T]],
    score: Callable[[T, Ints | None], Floats],
    groups: Sequence[str],
    *,
    has_defects: NDArray[np.bool_],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> TestScores:
    """Compute a score of every arm and seed, on the test images and on resampled groups of them.

    Args:
        tables: a table for each seed of an arm, in the same order of seeds and of images.
        score: of a table, on data sets with so many copies of each image, int [data sets, images].
        groups: of each image.
        has_defects: whether each image has a true instance.
        seed: of the resamples.
        num_resamples: data sets that are drawn.

    Raises:
        InputError: arms differ in their number of seeds.
    """
    copies = resampled_groups(groups, num_resamples, seed=seed)
    scores = scores_of_seeds({arm: [float(score(t, None)[0]) for t in of] for arm, of in tables.items()})
    flat = [table for of in tables.values() for table in of]
    resampled = np.zeros((*scores.per_seed.shape, num_resamples))
    for index, table in zip(np.ndindex(scores.per_seed.shape), flat, strict=True):
        resampled[index] = score(table, copies)
    return TestScores(
        arms=scores.arms,
        per_seed=scores.per_seed,
        resampled=resampled,
        num_groups=len({group for group, has in zip(groups, has_defects, strict=True) if has}),
        num_images=len(groups),
    )


def resampled_groups(groups: Sequence[str], num_resamples: int, *, seed: int) -> Ints:
    """Draw as many groups as there are, with replacement; return copies of each image, int [resamples, images].

    Images of one group stay together, since they show the same part.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    copies = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_resamples)
    return copies[:, group_of]


def arm_estimate(folds: Sequence[TestScores], arm: str) -> Estimate:
    """Estimate the mean score of an arm."""
    return _estimate(folds, {arm: 1.0})


def gain_estimate(folds: Sequence[TestScores], arm: str, reference: str) -> Estimate:
    """Estimate the gain of an arm over the reference, paired by seed and test image."""
    return _estimate(folds, {arm: 1.0, reference: -1.0})


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, by Holm's method: valid however the arms depend on each other."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = corrected
    return [float(p) for p in result]


def _estimate(folds: Sequence[TestScores], contrast: Mapping[str, float]) -> Estimate:
    """Estimate a weighted sum of arms over folds and seeds."""
    means, seeds, groups = np.zeros((3, len(folds)))
    for f, fold in enumerate(folds):
        weights = np.array([contrast.get(arm, 0.0) for arm in fold.arms])
        values = weights @ fold.per_seed
        means[f] = values.mean()
        seeds[f] = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
        groups[f] = _group_variance(fold, weights)
    num_folds = len(folds)
    of_seeds = _sum_of_folds(seeds, [fold.per_seed.shape[1] - 1 for fold in folds])
    of_groups = _sum_of_folds(groups, [fold.num_groups - 1 for fold in folds])
    between = float(means.var(ddof=1)) / num_folds if num_folds > 1 else 0.0
    unexplained = max(0.0, between - of_seeds.variance - of_groups.variance)
    return Estimate(
        mean=float(means.mean()),
        seeds=of_seeds,
        groups=of_groups,
        folds=Part(variance=unexplained, degrees=num_folds - 1),
    )


def _sum_of_folds(variances: Floats, degrees: Sequence[int]) -> Part:
    """Return the variance of a mean over folds; Satterthwaite's formula gives its degrees of freedom."""
    spread = sum(v**2 / d for v, d in zip(variances, degrees, strict=True) if d > 0)
    total = float(variances.sum())
    return Part(
        variance=total / len(variances) ** 2,
        degrees=total**2 / spread if spread > 0 else float(sum(max(0, d) for d in degrees)),
    )


def _group_variance(fold: TestScores, weights: Floats) -> float:
    """Return the part of the variance that the choice of test images has in the mean over seeds.

    It is what two seeds have in common, their covariance over resamples. What a seed has for itself on other images
    is in the variance between seeds already.
    """
    if fold.resampled is None:
        return 0.0
    values = np.tensordot(weights, fold.resampled, axes=1)  # [seeds, resamples]
    num_seeds, of_mean = len(values), float(values.mean(axis=0).var(ddof=1))
    if num_seeds > 1:
        of_one = float(values.var(axis=1, ddof=1).mean())
        of_mean = (num_seeds * of_mean - of_one) / (num_seeds - 1)
    # drawing with replacement from few groups varies too little
    return max(0.0, of_mean * fold.num_groups / max(fold.num_groups - 1, 1))
