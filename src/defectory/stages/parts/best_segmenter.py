"""Chooses which of a run's segmenters is exported: its arm by the verdict, its seed by validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from defectory.artifacts.primary_metric import LEAST_SCORE, METRIC_NAMES, PrimaryMetric

Validation = Mapping[str, Mapping[int, float]]
"""Primary metric on validation by arm and seed, of trained segmenters, in the project's order."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An arm and a seed, and why they were chosen."""

    arm: str
    seed: int
    why: str


def choose_segmenter(
    verdict: Mapping[str, Any], validation: Validation, metric: PrimaryMetric = "segm_map"
) -> Choice | None:
    """Choose the arm that the verdict recommends, and of its seeds the one that is best on validation.

    Without synthetic data recommended, the arm is the best one without. Test scores choose nothing, except through the
    verdict. Of equal arms or seeds the first is chosen.

    Args:
        verdict: of the stage `evaluate`.
        validation: scores of all trained segmenters.
        metric: that these scores are in.

    Returns:
        The choice; None if no segmenter was trained.
    """
    if not validation:
        return None
    arm, why = _choose_arm(
        verdict, {arm: fmean(of.values()) for arm, of in validation.items()}, least=LEAST_SCORE[metric]
    )
    seeds = validation[arm]
    seed = max(seeds, key=lambda seed: seeds[seed])
    if len(seeds) > 1:
        why += (
            f" Seed {seed} is the best of {len(seeds)} seeds on validation ({METRIC_NAMES[metric]} {seeds[seed]:.3f})."
        )
    return Choice(arm=arm, seed=seed, why=why)


def _choose_arm(verdict: Mapping[str, Any], means: Mapping[str, float], *, least: float) -> tuple[str, str]:
    reference, candidate = str(verdict.get("reference")), str(verdict.get("candidate"))
    best = max(means, key=lambda arm: means[arm])
    if verdict["outcome"] == "use it" and candidate in means:
        return candidate, "It is the best arm with synthetic data, and the verdict is to use it."
    if reference not in means:
        return best, "It is the arm that is best on validation: the verdict compares no arms."
    if means[reference] < least <= means[best]:
        without = reference.replace("_", " ")
        why = (
            f"It is the arm that is best on validation. The best arm without synthetic data ({without}) found nothing."
        )
        return best, why
    return reference, f"It is the best arm without synthetic data, because the verdict is: {verdict['outcome']}."
