"""The verdict: use synthetic data, do not use it, no worse and no better, or not enough evidence."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from defectory.artifacts.primary_metric import LEAST_SCORE, METRIC_NAMES, PrimaryMetric
from defectory.artifacts.scores import COLLAPSED_MAP, TELLING_PIXEL_AP
from defectory.artifacts.verdict import ArmFigure, Interval, MoreNeeded, Outcome, Verdict
from defectory.errors import InputError
from defectory.evaluation.statistics import SHARES, Estimate, Part, TestScores, arm_estimate, gain_estimate, holm

Number = TypeVar("Number", int, float)

MIN_SEEDS = 3
"""The spread of two seeds is too uncertain: their 95% interval is 13 standard errors wide on each side."""
EQUIVALENCE_MARGIN = 0.02
"""Of the primary metric. A smaller difference is less than what training once more with another seed changes (about
.03).
"""
NUM_DRAWS = 2000
"""Resamples of seeds for the bias of choosing arms."""
MAX_FACTOR = 50
"""More seeds or images than this many times those there are do not settle a verdict in practice."""


def verdict(
    folds: Sequence[TestScores],
    *,
    uses_synthetic: Mapping[str, bool],
    validation: Mapping[str, Sequence[float]] | None = None,
    metric: PrimaryMetric = "segm_map",
    margin: float = EQUIVALENCE_MARGIN,
    pixel_ap: Callable[[], Sequence[TestScores]] | None = None,
) -> Verdict:
    """Judge the best arm with synthetic data against the best arm without it.

    Both are chosen on validation, and the gain is measured on test.

    Args:
        folds: primary metric on each test part; a single one without cross-validation.
        uses_synthetic: whether an arm trains on synthetic data.
        validation: primary metric on validation of each arm's seeds, fold after fold, in the order of `folds`. Needed
            where there is a choice.
        metric: the primary metric, in which `folds` and `validation` are.
        margin: difference in it that counts as none.
        pixel_ap: gives the pixel AP of the same segmenters on each test part. It is asked for, and told, where segm mAP
            decides and is zero all over, as with cracks a few pixels wide; the outcome stays open there.

    Raises:
        InputError: an arm is unknown to one of the arguments, or a figure is not a finite number.
    """
    arms = folds[0].arms
    chosen_on = _validation_means(arms, validation or {}, metric)
    _require_complete(folds, uses_synthetic)
    sides = {side: [arm for arm in arms if uses_synthetic[arm] is side] for side in (False, True)}
    base = Verdict(
        outcome="not enough evidence",
        sentence="",
        metric=metric,
        margin=margin,
        num_seeds=min(fold.per_seed.shape[1] for fold in folds),
        num_folds=len(folds),
        num_groups=sum(fold.num_groups for fold in folds),
        num_images=sum(fold.num_images for fold in folds),
    )
    missing = [words for side, words in ((False, "without"), (True, "with")) if not sides[side]]
    if missing:
        found = " and none ".join(f"{words} synthetic data" for words in missing)
        return _with(base, sentence=f"Not enough evidence: no arm {found} was trained.")
    reference, candidate = (_best(sides[side], chosen_on, metric) for side in (False, True))
    estimates = {arm: arm_estimate(folds, arm) for arm in arms}
    gain = gain_estimate(folds, candidate, reference)
    bias = _selection_bias(folds, sides, validation or {})
    gain = replace(gain, mean=gain.mean - bias)
    base = _with(base, reference=reference, candidate=candidate, gain=gain.mean, selection_bias=bias)
    texts = _Texts(
        reference=f"{estimates[reference].mean:.3f} with {_readable(reference)}",
        candidate=f"{METRIC_NAMES[metric]} {estimates[candidate].mean:.3f} with {_readable(candidate)}",
        gain=f"{gain.mean:+.3f}" + (f" after {-bias:+.3f} for the choice of arms" if abs(bias) >= 0.0005 else ""),
        evidence=_evidence(base),
    )
    if base.num_seeds < MIN_SEEDS:
        return _with(
            base,
            arms=_figures(folds, estimates, uses_synthetic, chosen_on, reference, known=False),
            sentence=f"Not enough evidence from {_count(base.num_seeds, 'seed')}, {MIN_SEEDS} are needed: "
            f"{texts.candidate}, {texts.reference} ({texts.gain}).",
        )
    base = _with(
        base,
        arms=_figures(folds, estimates, uses_synthetic, chosen_on, reference, known=True),
        interval=gain.interval(),
        standard_error=gain.error,
    )
    if max(estimates[reference].mean, estimates[candidate].mean) < LEAST_SCORE[metric]:
        if metric == "pixel_ap":
            return _with(base, sentence=_nothing_found(base))
        return _by_pixels(base, [] if pixel_ap is None else pixel_ap(), reference=reference, candidate=candidate)
    outcome = _outcome(gain.interval(), margin)
    more = _more_needed(gain, base) if outcome == "not enough evidence" else None
    return _with(base, outcome=outcome, more_needed=more, sentence=_sentence(outcome, texts, gain, margin, more))


def _by_pixels(base: Verdict, pixel_ap: Sequence[TestScores], *, reference: str, candidate: str) -> Verdict:
    """Return the open verdict of two arms without a segm mAP, with what pixel AP says of them if it says anything."""
    means = {arm: arm_estimate(pixel_ap, arm).mean for arm in (reference, candidate)} if pixel_ap else {}
    if max(means.values(), default=0.0) < TELLING_PIXEL_AP:
        return _with(base, sentence=_nothing_found(base))
    gain = gain_estimate(pixel_ap, candidate, reference)
    low, high = gain.interval()
    return _with(
        base,
        pixel_ap_gain=gain.mean,
        pixel_ap_interval=(low, high),
        sentence=f"Not enough evidence: segm mAP is below {COLLAPSED_MAP} with {_readable(reference)} and with "
        f"{_readable(candidate)}, since hardly a mask covers half of its defect. Pixel AP {means[candidate]:.3f} with "
        f"{_readable(candidate)}, {means[reference]:.3f} with {_readable(reference)}: {gain.mean:+.3f} (95% interval "
        f"{low:+.3f} to {high:+.3f}; {_evidence(base)}).",
    )


def _nothing_found(of: Verdict) -> str:
    found = f"neither {_readable(str(of.reference))} nor {_readable(str(of.candidate))} found anything"
    return f"Not enough evidence: {found} ({METRIC_NAMES[of.metric]} below {LEAST_SCORE[of.metric]})."


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Parts of a sentence."""

    reference: str
    candidate: str
    gain: str
    evidence: str


def _with(value: Verdict, **changes: object) -> Verdict:
    return Verdict.model_validate({**dict(value), **changes})


def _require_complete(folds: Sequence[TestScores], uses_synthetic: Mapping[str, bool]) -> None:
    for fold in folds:
        if fold.arms != folds[0].arms:
            found = f"one fold has {', '.join(fold.arms)}, another {', '.join(folds[0].arms)}"
            raise InputError("arms", found, "train the same arms in every fold")
        if not np.isfinite(fold.per_seed).all():
            arm = fold.arms[int(np.argmin(np.isfinite(fold.per_seed).all(axis=1)))]
            raise InputError(f"arm {arm}", "a score is not a finite number", "train its segmenters again")
    unknown = [arm for arm in folds[0].arms if arm not in uses_synthetic]
    if unknown:
        raise InputError(f"arm {unknown[0]}", "it is not known whether it uses synthetic data", "say so for every arm")


def _validation_means(
    arms: Sequence[str], validation: Mapping[str, Sequence[float]], metric: PrimaryMetric
) -> dict[str, float]:
    means = {arm: float(np.mean(validation[arm])) for arm in arms if len(validation.get(arm, ()))}
    for arm, mean in means.items():
        if not math.isfinite(mean):
            raise InputError(f"arm {arm}", f"its {METRIC_NAMES[metric]} on validation is {mean}", "train again")
    return means


def _selection_bias(
    folds: Sequence[TestScores], sides: Mapping[bool, Sequence[str]], validation: Mapping[str, Sequence[float]]
) -> float:
    """Estimate by how much choosing on validation raises the gain on test.

    The same segmenters are validated and tested, so a seed that is lucky on validation is a little lucky on test.
    Seeds are resampled and arms chosen again: what the chosen arms gain on the same resample beyond what they gain
    with all seeds is luck.
    """
    if all(len(side) == 1 for side in sides.values()):
        return 0.0
    arms, rng = folds[0].arms, np.random.default_rng(0)
    counts = [fold.per_seed.shape[1] for fold in folds]
    known = [arm for side in sides.values() if len(side) > 1 for arm in side]
    for arm in known:
        if len(validation[arm]) != sum(counts):
            found = f"{len(validation[arm])} figures on validation, {sum(counts)} on test"
            raise InputError(f"arm {arm}", found, "validate and test the same segmenters")
    if min(counts) < MIN_SEEDS:
        return 0.0
    on_val = np.array([validation.get(arm, ()) if arm in known else np.zeros(sum(counts)) for arm in arms], np.float64)
    first = np.cumsum([0, *counts])
    val_luck, test_luck = np.zeros((2, len(arms), NUM_DRAWS))
    for fold, begin, count in zip(folds, first, counts, strict=False):
        drawn = rng.integers(0, count, (count, NUM_DRAWS))
        # draws with replacement from few seeds vary too little
        stretch = math.sqrt(count / (count - 1)) / len(folds)
        of_fold = on_val[:, begin : begin + count]
        val_luck += stretch * (of_fold[:, drawn].mean(axis=1) - of_fold.mean(axis=1, keepdims=True))
        test_luck += stretch * (fold.per_seed[:, drawn].mean(axis=1) - fold.per_seed.mean(axis=1, keepdims=True))
    drawn_val = on_val.mean(axis=1, keepdims=True) + val_luck
    bias = 0.0
    for sign, side in ((-1, sides[False]), (1, sides[True])):
        rows = np.array([arms.index(arm) for arm in side])
        chosen = rows[drawn_val[rows].argmax(axis=0)]
        bias += sign * float(test_luck[chosen, np.arange(NUM_DRAWS)].mean())
    return bias


def _best(arms: Sequence[str], chosen_on: Mapping[str, float], metric: PrimaryMetric) -> str:
    """Return the arm that is best on validation, of equal ones the first."""
    if len(arms) == 1:
        return arms[0]
    for arm in arms:
        if arm not in chosen_on:
            raise InputError(
                f"arm {arm}", f"its {METRIC_NAMES[metric]} on validation is not known", "validate every arm"
            )
    return max(arms, key=lambda arm: chosen_on[arm])


def _figures(
    folds: Sequence[TestScores],
    estimates: Mapping[str, Estimate],
    uses_synthetic: Mapping[str, bool],
    chosen_on: Mapping[str, float],
    reference: str,
    *,
    known: bool,
) -> tuple[ArmFigure, ...]:
    """Return every arm's figures; without intervals if they are not `known`."""
    gains = {arm: gain_estimate(folds, arm, reference) for arm in estimates if arm != reference}
    corrected = dict(zip(gains, holm([gain.p_value() for gain in gains.values()]), strict=True))
    return tuple(
        ArmFigure(
            arm=arm,
            uses_synthetic=uses_synthetic[arm],
            validation=chosen_on.get(arm),
            mean=estimate.mean,
            interval=estimate.interval(within=SHARES) if known else None,
            gain=gains[arm].mean if arm in gains else None,
            gain_interval=gains[arm].interval() if known and arm in gains else None,
            p_value=corrected[arm] if known and arm in gains else None,
        )
        for arm, estimate in estimates.items()
    )


def _outcome(interval: Interval, margin: float) -> Outcome:
    low, high = interval
    if -margin < low and high < margin:
        return "no worse and no better"
    if low > 0:
        return "use it"
    if high < 0:
        return "do not use it"
    return "not enough evidence"


def _more_needed(gain: Estimate, of: Verdict) -> MoreNeeded | None:
    """Return what makes the interval narrow enough, for a gain or for none, if gain and spread stay the same."""
    enough = max(abs(gain.mean), of.margin - abs(gain.mean))

    def settles(seeds: float, images: float) -> bool:
        return _after(gain, of, seeds=seeds, images=images).half_width() < enough

    counts = list(range(of.num_seeds + 1, MAX_FACTOR * of.num_seeds))
    seeds = _least(counts, lambda count: settles(count / of.num_seeds, 1))
    if gain.groups.variance == 0:
        return None if seeds is None else MoreNeeded(seeds=seeds - of.num_seeds)
    factors = [float(factor) for factor in np.geomspace(1.05, MAX_FACTOR, 200)]
    images = _least(factors, lambda factor: settles(1, factor))
    if seeds is not None or images is not None:
        return MoreNeeded(
            seeds=None if seeds is None else seeds - of.num_seeds,
            images=None if images is None else _two_digits(math.ceil((images - 1) * of.num_images)),
        )
    both = _least(factors, lambda factor: settles(factor, factor))
    return None if both is None else MoreNeeded(factor=round(both, 1))


def _two_digits(count: int) -> int:
    """Round up to two digits, since an estimate knows no more."""
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _least(values: Sequence[Number], settles: Callable[[Number], bool]) -> Number | None:
    """Return the least of ascending values that settles it; all larger ones do too."""
    index = bisect_left(values, True, key=settles)
    return values[index] if index < len(values) else None


def _after(gain: Estimate, of: Verdict, *, seeds: float, images: float) -> Estimate:
    """Return the estimate with so many times the seeds and test images."""
    return replace(
        gain,
        seeds=Part(variance=gain.seeds.variance / seeds, degrees=of.num_folds * (of.num_seeds * seeds - 1)),
        groups=Part(variance=gain.groups.variance / images, degrees=of.num_groups * images - of.num_folds),
    )


def _sentence(outcome: Outcome, texts: _Texts, gain: Estimate, margin: float, more: MoreNeeded | None) -> str:
    low, high = gain.interval()
    told = f"{texts.candidate}, {texts.reference}: {texts.gain} (95% interval {low:+.3f} to {high:+.3f}"
    if outcome == "no worse and no better":
        told += f", within {margin:.3f} either way"
    return f"{outcome.capitalize()}: {told}; {texts.evidence}).{_more_text(more)}"


def _more_text(more: MoreNeeded | None) -> str:
    if more is None:
        return ""
    if more.factor is not None:
        return f" About {more.factor:.1f} times as many seeds and test images would settle it."
    counts = (more.seeds, "seed"), (more.images, "test image")
    ways = [f"{count:,} more {noun}{'s' if count != 1 else ''}" for count, noun in counts if count is not None]
    return f" About {' or '.join(ways)} would settle it."


def _evidence(of: Verdict) -> str:
    folds = f"{of.num_folds} folds, " if of.num_folds > 1 else ""
    images = f"{of.num_groups} groups of test images with defects" if of.num_groups else "test images taken as given"
    return f"{folds}{_count(of.num_seeds, 'seed')}, {images}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _readable(arm: str) -> str:
    return arm.replace("_", " ")
