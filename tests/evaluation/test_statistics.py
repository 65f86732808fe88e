"""Variance parts and intervals of scores over seeds, groups and folds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from defectory.errors import InputError
from defectory.evaluation.match_tables import ClassMatches, MatchTable
from defectory.evaluation.statistics import (
    TestScores,
    arm_estimate,
    gain_estimate,
    holm,
    resampled_groups,
    scores_of_seeds,
    scores_of_tables,
)

REAL, MIXED = [0.30, 0.34, 0.32, 0.31], [0.36, 0.37, 0.39, 0.35]


def test_with_seeds_alone_the_gain_is_a_paired_t_test() -> None:
    gain = gain_estimate([scores_of_seeds({"real": REAL, "mixed": MIXED})], "mixed", "real")
    expected = stats.ttest_rel(MIXED, REAL)
    assert gain.p_value() == pytest.approx(expected.pvalue)
    assert gain.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (gain.groups.variance, gain.folds.variance, gain.seeds.degrees) == (0.0, 0.0, 3)


def test_an_arms_mean_has_students_interval() -> None:
    estimate = arm_estimate([scores_of_seeds({"real": REAL})], "real")
    expected = stats.t.interval(0.95, 3, np.mean(REAL), stats.sem(REAL))
    assert estimate.interval() == pytest.approx(expected)


def test_an_interval_ends_where_the_mean_can_no_longer_be() -> None:
    few = {"real": [0.05, 0.6, 0.95]}
    estimate = arm_estimate([scores_of_seeds(few)], "real")
    low, high = estimate.interval()
    assert low < 0 < 1 < high
    assert estimate.interval(within=(0, 1)) == (0, 1)
    assert estimate.interval(within=(0, np.inf)) == (0, high)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    gain = gain_estimate([scores_of_seeds({"real": [0.3], "mixed": [0.4]})], "mixed", "real")
    assert gain.mean == pytest.approx(0.1)
    assert gain.interval() == (-np.inf, np.inf)
    assert gain.p_value() == 1.0


def test_what_seeds_have_in_common_over_test_images_is_added_once() -> None:
    """A crossed design: the group part is the covariance of two seeds, and what a seed has for itself stays out."""
    rng = np.random.default_rng(0)
    num_seeds, num_groups, common_sd, own_sd = 4, 4000, 0.3, 0.9
    figures = common_sd * rng.normal(size=num_groups) + own_sd * rng.normal(size=(num_seeds, num_groups))
    copies = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=3000)
    scores = TestScores(
        arms=("real", "mixed"),
        per_seed=np.array([np.zeros(num_seeds), figures.mean(axis=1)]),
        resampled=np.array([np.zeros((num_seeds, 3000)), figures @ copies.T / num_groups]),
        num_groups=num_groups,
    )
    gain = gain_estimate([scores], "mixed", "real")
    assert gain.groups.variance == pytest.approx(common_sd**2 / num_groups, rel=0.25)
    assert gain.error**2 == pytest.approx(gain.seeds.variance + gain.groups.variance)


def test_each_part_of_the_variance_has_students_t_of_its_own() -> None:
    rng = np.random.default_rng(1)
    resampled = np.stack([np.zeros((3, 500)), np.tile(rng.normal(0, 0.1, 500), (3, 1))])
    scores = TestScores(
        arms=("real", "mixed"), per_seed=np.array([[0.0] * 3, [0.1, 0.2, 0.3]]), resampled=resampled, num_groups=50
    )
    gain = gain_estimate([scores], "mixed", "real")
    assert (gain.seeds.degrees, gain.groups.degrees) == (2, pytest.approx(49))
    assert gain.seeds.variance == pytest.approx(0.01 / 3)
    assert gain.groups.variance == pytest.approx(0.01, rel=0.2)
    halves = stats.t.ppf(0.975, 2) * gain.seeds.variance**0.5, stats.t.ppf(0.975, 49) * gain.groups.variance**0.5
    assert gain.half_width() == pytest.approx(np.hypot(*halves))
    low, high = gain.interval(1 - gain.p_value())
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-6)


def test_folds_that_differ_widen_the_interval() -> None:
    def fold(gain: float) -> TestScores:
        return scores_of_seeds({"real": REAL, "mixed": [score + gain for score in MIXED]})

    alike = gain_estimate([fold(0.0)] * 3, "mixed", "real")
    apart = gain_estimate([fold(-0.2), fold(0.0), fold(0.2)], "mixed", "real")
    assert alike.folds.variance == 0.0
    assert apart.mean == pytest.approx(alike.mean)
    assert apart.error == pytest.approx(0.2 / np.sqrt(3))
    assert apart.folds.degrees == 2
    assert apart.half_width() > 4 * apart.error


def test_images_of_a_group_are_drawn_together() -> None:
    copies = resampled_groups(["b", "a", "b", "c", "a"], 50, seed=0)
    assert np.array_equal(copies[:, 0], copies[:, 2])
    assert np.array_equal(copies[:, 1], copies[:, 4])
    assert np.all(copies[:, [0, 1, 3]].sum(axis=1) == 3)
    assert not np.array_equal(copies[:, 0], copies[:, 1])
    assert np.array_equal(copies, resampled_groups(["b", "a", "b", "c", "a"], 50, seed=0))


def table(*right: bool) -> MatchTable:
    """Three images with an instance each, found at every threshold or missed."""
    flags = np.tile(np.array(right), (10, 1))
    matches = ClassMatches(
        scores=np.array([0.9, 0.8, 0.7]),
        image=np.arange(3),
        right=flags,
        ignored=np.zeros_like(flags),
        num_true=np.array([1, 1, 0]),
    )
    return MatchTable(num_images=3, classes={1: matches})


def test_all_arms_and_seeds_are_scored_on_the_same_resamples() -> None:
    tables = {"real": [table(True, False, False)] * 2, "mixed": [table(True, False, False), table(True, True, False)]}
    scores = scores_of_tables(tables, ["a", "b", "c"], num_resamples=40)
    assert scores.resampled is not None
    assert scores.resampled.shape == (2, 2, 40)
    assert np.array_equal(scores.resampled[0, 0], scores.resampled[1, 0])
    assert scores.per_seed == pytest.approx(np.array([[51 / 101, 51 / 101], [51 / 101, 1.0]]))
    assert (scores.num_groups, scores.num_images) == (2, 3)


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_unequal_seeds_and_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="seeds are 4 of real, 1 of mixed"):
        scores_of_seeds({"real": REAL, "mixed": [0.3]})
    with pytest.raises(InputError, match="arm mixed: the score of seed number 2 is nan"):
        scores_of_seeds({"real": [0.3, 0.3], "mixed": [0.3, float("nan")]})
