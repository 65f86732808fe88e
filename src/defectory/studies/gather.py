"""Gathers the finished cells of a study: scores with intervals, gains paired by seed and test image, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from defectory.artifacts.primary_metric import METRIC_NAMES, MetricChoice, PrimaryMetric
from defectory.artifacts.study import Gain, ImageFigures, Point, Series, StudyOutcome, StudyScore, series_name
from defectory.errors import InputError
from defectory.evaluation.statistics import (
    SHARES,
    Estimate,
    TestScores,
    arm_estimate,
    gain_estimate,
    holm,
    resampled_scores,
    scores_of_seeds,
)
from defectory.evaluation.tables import TABLE_SCORES, ScoreTable
from defectory.evaluation.verdict import MIN_SEEDS, verdict
from defectory.segmentation.arms import ARMS
from defectory.stages.evaluate import PLANT_KEYS, SCORE_KEYS
from defectory.studies.cells import Amount, Cell
from defectory.studies.results import CellResult

COMPARED = tuple(TABLE_SCORES)
FALSE_ALARMS = "false_alarms_per_100_good_images"
LADDER = "ladder"
"""Recipe whose arms are rungs in order."""
IMAGE_FIGURES = {
    "fidelity": ("fidelity", "mean"),
    "accepted": ("fidelity", "accepted_share"),
    "kid": ("image_sets", "kid"),
    "kid_floor": ("image_sets", "kid_floor"),
    "fid": ("image_sets", "fid"),
    "fid_floor": ("image_sets", "fid_floor"),
    "density": ("image_sets", "density"),
    "coverage": ("image_sets", "coverage"),
    "l2": ("diversity", "l2"),
    "mutual_information_nats": ("diversity", "mutual_information_nats"),
}
"""Figures of a variant's drafts, and where a run's scores hold them."""
RANGES = {
    **dict.fromkeys(("kid", "kid_floor"), (-math.inf, math.inf)),
    **dict.fromkeys((FALSE_ALARMS, "fid", "fid_floor", "density", "l2", "mutual_information_nats"), (0.0, math.inf)),
}
"""Values that scores and figures can have, unless they are shares."""
ByFold = Mapping[int, Mapping[str, Sequence[CellResult]]]
"""Results by fold and variant, in the order of the seeds."""


def gather(
    cells: Sequence[Cell],
    found: Mapping[Cell, CellResult],
    *,
    project: str,
    recipe: str,
    summary: str,
    seeds: Sequence[int],
    remarks: Sequence[str] = (),
) -> StudyOutcome:
    """Return what is known from the finished cells of a study.

    A seed counts at a point once all its cells there are finished, those of every variant and fold, so that all series
    compare on the same seeds.

    Args:
        cells: of the study, in order.
        found: results of the finished ones.
        project: its name.
        recipe: its name.
        summary: one line on the recipe.
        seeds: of the study.
        remarks: on the study.
    """
    remarks = list(remarks)
    amounts = {cell.amount.label: cell.amount for cell in cells}
    points = [_point(amount, cells, found, remarks, climbs=recipe == LADDER) for amount in amounts.values()]
    return StudyOutcome(
        project=project,
        recipe=recipe,
        summary=summary,
        seeds=tuple(seeds),
        folds=len({cell.fold for cell in cells if cell.fold is not None}),
        points=tuple(points),
        remarks=tuple(dict.fromkeys(remarks)),
        hours=sum(result.facts.seconds for result in found.values()) / 3600,
    )


def _point(
    amount: Amount, cells: Sequence[Cell], found: Mapping[Cell, CellResult], remarks: list[str], *, climbs: bool
) -> Point:
    of_point = [cell for cell in cells if cell.amount.label == amount.label]
    done = [cell for cell in of_point if cell in found]
    empty = Point(label=amount.label, num_labelled=0, num_cells=len(of_point), num_finished=len(done))
    seeds = [
        seed
        for seed in dict.fromkeys(cell.seed for cell in of_point)
        if all(cell in found for cell in of_point if cell.seed == seed)
    ]
    if not seeds:
        return empty
    by_fold: dict[int, dict[str, list[CellResult]]] = {}
    for cell in of_point:
        if cell.seed in seeds:
            of_fold = by_fold.setdefault(cell.fold or 0, {})
            of_fold.setdefault(cell.variant.name, []).append(found[cell])
    series = _series_names(of_point, by_fold, amount, remarks)
    remarks += _unlike_drafts(by_fold, amount, seeds)
    if not series:
        return empty
    compared = [score for score in COMPARED if score != FALSE_ALARMS or _has_good_images(by_fold)]
    folds = {score: [_test_scores(of, series, score, "tables") for of in by_fold.values()] for score in compared}
    results = [result for of in by_fold.values() for group in of.values() for result in group]
    metric = _metric_of(results, amount, remarks)
    judged = verdict(
        folds[metric],
        uses_synthetic={name: _uses_synthetic(arm) for name, (arm, _) in series.items()},
        validation={name: _validation(by_fold, arm, variant) for name, (arm, variant) in series.items()},
        metric=metric,
        pixel_ap=lambda: folds["pixel_ap"],
    )
    return empty.model_copy(
        update={
            "num_labelled": float(np.mean([result.facts.num_labelled for result in results])),
            "series": tuple(_series(by_fold, folds, arm, variant) for arm, variant in series.values()),
            "gains": tuple(_gains(folds, series, judged.reference, climbs=climbs)),
            "images": tuple(_image_figures(by_fold)),
            "verdict": judged,
            "transfer": tuple(_transferred(by_fold, series)),
        }
    )


def _metric_of(results: Sequence[CellResult], amount: Amount, remarks: list[str]) -> PrimaryMetric:
    """Return the primary metric that all cells share; segm mAP if they do not agree."""
    choices = [MetricChoice.model_validate(result.scores["primary_metric"]) for result in results]
    chosen: dict[PrimaryMetric, None] = dict.fromkeys(choice.metric for choice in choices)
    if len(chosen) == 1:
        remarks += [f"{amount.label}: {why}" for why in [choices[0].why] if why]
        return choices[0].metric
    remarks.append(
        f"{amount.label}: cells were trained by different scores ({', '.join(METRIC_NAMES[name] for name in chosen)}), "
        "as the labelled images of each decide; set segmentation.primary_metric to compare like with like"
    )
    return "segm_map"


def _series_names(
    cells: Sequence[Cell], by_fold: ByFold, amount: Amount, remarks: list[str]
) -> dict[str, tuple[str, str]]:
    """Return arm and variant of each series that every cell has trained, by its name."""
    wanted = dict.fromkeys((arm, cell.variant.name) for cell in cells for arm in cell.arms)
    series: dict[str, tuple[str, str]] = {}
    for arm, variant in wanted:
        of_variant = [result for of in by_fold.values() for result in of[variant]]
        without = [result for result in of_variant if arm not in result.facts.arms]
        # an arm that no variant changes is the same in all of them
        if variant and not _uses_synthetic(arm) and _is_repeated(by_fold, arm, variant, series):
            continue
        if without:
            why = without[0].facts.skipped.get(arm, "")
            name = series_name(arm, variant)
            remarks.append(
                f"{amount.label}: {name} left out, {len(without)} of {len(of_variant)} cells have none: {why}"
            )
        else:
            series[series_name(arm, variant)] = (arm, variant)
    return series


def _unlike_drafts(by_fold: ByFold, amount: Amount, seeds: Sequence[int]) -> Iterable[str]:
    """Yield a remark for each variant whose seeds draw drafts in unlike ways, since their labelled images differ."""
    for variant in dict.fromkeys(variant for of in by_fold.values() for variant in of):
        seeds_of: dict[str, list[int]] = {}
        for of in by_fold.values():
            for seed, result in zip(seeds, of[variant], strict=True):
                if result.facts.drawn_as:
                    seeds_of.setdefault(result.facts.drawn_as, []).append(seed)
        if len(seeds_of) > 1:
            where = f"{amount.label}, {variant}" if variant else amount.label
            told = "; ".join(f"{drawn} (seed {', '.join(map(str, sorted(set(of))))})" for drawn, of in seeds_of.items())
            yield (
                f"{where}: drafts are drawn in unlike ways, as the labelled images of each seed decide: {told}. Set "
                "tiling.mode and synthesis.mode to compare like with like"
            )


def _is_repeated(by_fold: ByFold, arm: str, variant: str, known: Mapping[str, tuple[str, str]]) -> bool:
    """Return whether an arm's scores are those of a variant before, in every cell."""
    for other_arm, other in known.values():
        if other_arm == arm and all(
            mine.scores["arms"][arm]["per_seed"] == theirs.scores["arms"][arm]["per_seed"]
            for of in by_fold.values()
            for mine, theirs in zip(of[variant], of[other], strict=True)
            if arm in mine.scores["arms"] and arm in theirs.scores["arms"]
        ):
            return True
    return False


def _has_good_images(by_fold: ByFold) -> bool:
    """Return whether the test images of every fold hold some without a defect."""
    tables = [next(iter(next(iter(of.values()))[0].tables.values()), None) for of in by_fold.values()]
    return all(table is not None and bool(table.is_good.any()) for table in tables)


def _uses_synthetic(arm: str) -> bool:
    return "synthetic" in ARMS.get(arm).sources


def _test_scores(
    of_fold: Mapping[str, Sequence[CellResult]], series: Mapping[str, tuple[str, str]], score: str, kind: str
) -> TestScores:
    """Return a score of all series and seeds of a fold, on its test images and on resampled groups of them."""
    tables: dict[str, list[ScoreTable]] = {
        name: [getattr(result, kind)[arm] for result in of_fold[variant]] for name, (arm, variant) in series.items()
    }
    first = next(iter(tables.values()))[0]
    for name, of in tables.items():
        if any(not np.array_equal(table.image_ids, first.image_ids) for table in of):
            raise InputError(name, "was tested on other images than the other series", "run the study again")
    groups = next(iter(of_fold.values()))[0].facts.groups
    if kind != "tables":
        groups = tuple(str(i) for i in first.image_ids)
    return resampled_scores(tables, TABLE_SCORES[score], groups, has_defects=first.num_defects > 0)


def _validation(by_fold: ByFold, arm: str, variant: str) -> list[float]:
    """Return the primary metric on validation of each seed, fold after fold."""
    return [float(result.scores["arms"][arm]["validation"][0]) for of in by_fold.values() for result in of[variant]]


def _series(by_fold: ByFold, folds: Mapping[str, Sequence[TestScores]], arm: str, variant: str) -> Series:
    name = series_name(arm, variant)
    scores: dict[str, StudyScore] = {}
    for score in (*SCORE_KEYS, *PLANT_KEYS):
        if score in folds:
            scores[score] = _study_score(folds[score], name, score)
            continue
        values = [[_figure(result, arm, score) for result in of[variant]] for of in by_fold.values()]
        if all(value is not None for of in values for value in of):
            of_seeds = [scores_of_seeds({name: [float(v) for v in of if v is not None]}) for of in values]
            scores[score] = _study_score(of_seeds, name, score)
    shown = [result.scores["arms"][arm]["exposures"] for of in by_fold.values() for result in of[variant]]
    sources = dict.fromkeys(source for of in shown for source in of)
    return Series(
        arm=arm,
        variant=variant,
        uses_synthetic=_uses_synthetic(arm),
        scores=scores,
        exposures={s: float(np.mean([of.get(s, {}).get("shown", 0) for of in shown])) for s in sources},
    )


def _figure(result: CellResult, arm: str, score: str) -> float | None:
    of: Mapping[str, Any] = result.scores["arms"][arm]
    value = of["plant"][score] if score in PLANT_KEYS else of[score]
    return None if value is None else float(value)


def _study_score(folds: Sequence[TestScores], name: str, score: str) -> StudyScore:
    row = folds[0].arms.index(name)
    per_seed = np.mean([fold.per_seed[row] for fold in folds], axis=0)
    estimate = arm_estimate(folds, name)
    return StudyScore(
        mean=estimate.mean,
        interval=_interval(estimate, folds, within=RANGES.get(score, SHARES)),
        per_seed=tuple(float(value) for value in per_seed),
    )


def _interval(
    estimate: Estimate, folds: Sequence[TestScores], *, within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    return estimate.interval(within=within) if min(fold.per_seed.shape[1] for fold in folds) >= MIN_SEEDS else None


def _gains(
    folds: Mapping[str, Sequence[TestScores]],
    series: Mapping[str, tuple[str, str]],
    reference: str | None,
    *,
    climbs: bool,
) -> Iterable[Gain]:
    """Compare each series with the reference of the verdict, and variants of an arm with the first one.

    If the study climbs a ladder, each rung is compared with the rung below as well.
    """
    first_of: dict[str, str] = {}
    for name, (arm, _) in series.items():
        first_of.setdefault(arm, name)
    pairs = [(name, reference) for name in series if reference is not None and name != reference]
    pairs += [(name, first_of[arm]) for name, (arm, _) in series.items() if name != first_of[arm]]
    if climbs:
        names = list(series)
        pairs += [(name, below) for below, name in pairwise(names) if series[name][1] == series[below][1]]
    pairs = list(dict.fromkeys(pairs))
    for score, of in folds.items():
        estimates = [gain_estimate(of, name, other) for name, other in pairs]
        known = min(fold.per_seed.shape[1] for fold in of) >= MIN_SEEDS
        corrected: Sequence[float | None] = holm([e.p_value() for e in estimates]) if known else [None] * len(pairs)
        for (name, other), estimate, p_value in zip(pairs, estimates, corrected, strict=True):
            yield Gain(
                series=name,
                reference=other,
                score=score,
                mean=estimate.mean,
                interval=_interval(estimate, of),
                p_value=p_value,
            )


def _image_figures(by_fold: ByFold) -> Iterable[ImageFigures]:
    """Return the figures of each variant's drafts, and of images made elsewhere."""
    variants = dict.fromkeys(variant for of in by_fold.values() for variant in of)
    for variant in variants:
        scores = [[result.scores for result in of[variant]] for of in by_fold.values()]
        yield ImageFigures(variant=variant, figures=_figures_of(scores))
    first = next(iter(variants))
    everywhere = [[result.scores.get("others", {}) for result in of[first]] for of in by_fold.values()]
    for name in everywhere[0][0]:
        yield ImageFigures(
            variant=f"images of {name}", figures=_figures_of([[s[name] for s in of] for of in everywhere])
        )


def _figures_of(scores: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, StudyScore]:
    """Return figures of images from scores, by fold and seed; those that some of them lack are left out."""
    figures: dict[str, StudyScore] = {}
    for name, (part, key) in IMAGE_FIGURES.items():
        values = [[_of_part(of_seed, part, key) for of_seed in of] for of in scores]
        if all(value is not None for of in values for value in of):
            of_seeds = [scores_of_seeds({name: [v for v in of if v is not None]}) for of in values]
            figures[name] = _study_score(of_seeds, name, name)
    return figures


def _of_part(scores: Mapping[str, Any], part: str, key: str) -> float | None:
    value: Any = (scores.get(part) or {}).get(key)
    return None if value is None else float(value)


def _transferred(by_fold: ByFold, series: Mapping[str, tuple[str, str]]) -> Iterable[Series]:
    """Return the series' scores on another data set; nothing without one."""
    if any(arm not in result.transfer for of in by_fold.values() for arm, v in series.values() for result in of[v]):
        return
    folds = {score: [_test_scores(of, series, score, "transfer") for of in by_fold.values()] for score in COMPARED}
    for name, (arm, variant) in series.items():
        yield Series(
            arm=arm,
            variant=variant,
            uses_synthetic=_uses_synthetic(arm),
            scores={score: _study_score(of, name, score) for score, of in folds.items()},
            exposures={},
        )
