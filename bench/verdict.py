"""How often the verdict is right on simulated studies, whose true gain is known.

Each study draws its seeds and groups of test images anew. Prints, for every kind of study, how often each outcome came
out, how often the interval of the gain held the true one, and its mean width. Run:
`python bench/verdict.py [--studies 1000] [--only outcomes constructions comparisons detections] [--of NAME]`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.verdict import Verdict
from defectory.evaluation.match_tables import ClassMatches, MatchTable
from defectory.evaluation.statistics import (
    Estimate,
    Part,
    TestScores,
    gain_estimate,
    holm,
    scores_of_tables,
    t_quantile,
)
from defectory.evaluation.verdict import verdict

Floats = NDArray[np.float64]
PAIRED_SD, OWN_SD = 0.0212, 0.0185
"""Of a seed: what it does to every arm alike, and to each arm by itself."""
GROUP_SD, ARM_GROUP_SD, SEED_GROUP_SD = 0.25, 0.06, 0.08
"""Of a group of test images: how hard it is, how much harder for one arm, and for one segmenter.

On 60 groups one seed's score has a standard deviation of .03, and two arms' scores a correlation of .5.
"""
RESAMPLES = 300


@dataclass(frozen=True, kw_only=True)
class World:
    """A kind of study.

    Attributes:
        num_without: arms without synthetic data.
        num_with: arms with synthetic data.
        num_seeds: of each arm.
        num_groups: of test images, in all folds together; validation has half as many.
        gain: true gain of the first arm with synthetic data; all other arms are equal.
        own_sd_factors: of the arms' own spread between seeds, in turn.
        num_folds: test parts, each with segmenters of its own.
        fold_sd: of what a fold does to each arm by itself.
    """

    num_without: int = 3
    num_with: int = 3
    num_seeds: int = 5
    num_groups: int = 100
    gain: float = 0.0
    own_sd_factors: tuple[float, ...] = (1.0,)
    num_folds: int = 1
    fold_sd: float = 0.0

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the names of the arms."""
        names = [f"without {i}" for i in range(self.num_without)] + [f"with {i}" for i in range(self.num_with)]
        return tuple(names)

    @property
    def true_scores(self) -> Floats:
        """Return the expected score of each arm."""
        scores = np.full(len(self.arms), 0.35)
        scores[self.num_without] += self.gain
        return scores

    @property
    def uses_synthetic(self) -> dict[str, bool]:
        """Return whether each arm uses synthetic data."""
        return {arm: arm.startswith("with ") for arm in self.arms}


def study(world: World, rng: np.random.Generator) -> tuple[list[TestScores], dict[str, list[float]]]:
    """Draw a study: test scores of each fold, and the segm mAP on validation of each arm's seeds."""
    folds: list[TestScores] = []
    validation: dict[str, list[float]] = {arm: [] for arm in world.arms}
    num_arms, num_groups = len(world.arms), world.num_groups // world.num_folds
    own_sd = OWN_SD * np.resize(world.own_sd_factors, num_arms)
    for _ in range(world.num_folds):
        trained = world.true_scores[:, None] + rng.normal(0, PAIRED_SD, world.num_seeds)
        trained = trained + rng.normal(0, 1, trained.shape) * own_sd[:, None]
        trained = trained + rng.normal(0, world.fold_sd, (num_arms, 1))
        test = _figures_of_groups(trained, num_groups, rng)
        copies = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=RESAMPLES)
        fold = TestScores(
            arms=world.arms,
            per_seed=test.mean(axis=2),
            resampled=test @ copies.T / num_groups,
            num_groups=num_groups,
            num_images=2 * num_groups,
        )
        folds.append(fold)
        found = _figures_of_groups(trained, max(2, num_groups // 2), rng).mean(axis=2)
        for arm, scores in zip(world.arms, found, strict=True):
            validation[arm].extend(map(float, scores))
    return folds, validation


def _figures_of_groups(trained: Floats, num_groups: int, rng: np.random.Generator) -> Floats:
    """Return what each segmenter [arms, seeds] scores on each group; skewed, since a few groups are very hard."""
    num_arms, num_seeds = trained.shape
    hard = GROUP_SD * rng.normal(0, 1, (1, 1, num_groups))
    of_arm = ARM_GROUP_SD * (rng.exponential(1, (num_arms, 1, num_groups)) - 1)
    of_seed = SEED_GROUP_SD * (rng.exponential(1, (num_arms, num_seeds, num_groups)) - 1)
    return trained[:, :, None] + hard + of_arm + of_seed


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What came out of many studies: shares, and the mean width of the interval."""

    outcomes: Mapping[str, float]
    coverage: float
    mean_width: float
    mean_bias: float


def tally(world: World, num_studies: int, *, seed: int = 0) -> Tally:
    """Judge many studies of one kind."""
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    truth = dict(zip(world.arms, world.true_scores, strict=True))
    held: list[bool] = []
    widths: list[float] = []
    biases: list[float] = []
    for _ in range(num_studies):
        folds, validation = study(world, rng)
        judged = verdict(folds, uses_synthetic=world.uses_synthetic, validation=validation)
        outcomes[_counted_as(judged, truth)] += 1
        if judged.interval is not None and judged.reference and judged.candidate and judged.gain is not None:
            true_gain = truth[judged.candidate] - truth[judged.reference]
            held.append(judged.interval[0] <= true_gain <= judged.interval[1])
            widths.append(judged.interval[1] - judged.interval[0])
            biases.append(judged.gain - true_gain)
    return Tally(
        outcomes={name: count / num_studies for name, count in outcomes.items()},
        coverage=float(np.mean(held)),
        mean_width=float(np.mean(widths)),
        mean_bias=float(np.mean(biases)),
    )


def _counted_as(judged: Verdict, truth: Mapping[str, float]) -> str:
    """Return the outcome; to use an arm without the planted gain is none of it."""
    planted = max(truth.values()) > min(truth.values())
    if judged.outcome == "use it" and planted and truth[str(judged.candidate)] < max(truth.values()):
        return "use another arm"
    return judged.outcome


WORLDS: dict[str, World] = {
    "no difference": World(),
    "no difference, 3 seeds": World(num_seeds=3),
    "no difference, 30 groups": World(num_groups=30),
    "no difference, 3 seeds, 30 groups": World(num_seeds=3, num_groups=30),
    "no difference, 200 groups": World(num_groups=200),
    "no difference, 3 seeds, 200 groups": World(num_seeds=3, num_groups=200),
    "no difference, 1 arm against 1": World(num_without=1, num_with=1),
    "no difference, 1 arm against 5": World(num_without=1, num_with=5),
    "no difference, 5 arms against 1": World(num_without=5, num_with=1),
    "no difference, 1 arm against 5, 3 seeds, 200 groups": World(
        num_without=1, num_with=5, num_seeds=3, num_groups=200
    ),
    "no difference, spread of arms 1 : 2 : 4": World(own_sd_factors=(0.5, 1, 2), num_groups=200),
    "no difference, 5 folds of 3 seeds": World(num_folds=5, num_seeds=3),
    "no difference, 5 folds of 3 seeds that differ": World(num_folds=5, num_seeds=3, fold_sd=0.02),
    "a gain of .06": World(gain=0.06),
    "a gain of .06, 200 groups": World(gain=0.06, num_groups=200),
    "a gain of .04, 10 seeds, 200 groups": World(gain=0.04, num_seeds=10, num_groups=200),
    "a gain of .10, 3 seeds": World(gain=0.10, num_seeds=3),
    "a gain of .06, 5 folds of 3 seeds": World(gain=0.06, num_folds=5, num_seeds=3),
    "a loss of .08, 1 arm against 1": World(gain=-0.08, num_without=1, num_with=1),
    "no difference, 20 seeds, 500 groups": World(num_seeds=20, num_groups=500, num_without=1, num_with=1),
}


def print_outcomes(num_studies: int, *, of: str = "", seed: int = 0) -> None:
    """Print what the verdict says in every world whose name holds `of`."""
    print("\n| studies | use it | no worse, no better | do not use it | open | coverage | width | bias of the gain |")
    print("|---|---|---|---|---|---|---|---|")
    for name, world in WORLDS.items():
        if of not in name:
            continue
        found = tally(world, num_studies, seed=seed)
        shares = [
            found.outcomes.get(o, 0.0)
            for o in ("use it", "no worse and no better", "do not use it", "not enough evidence")
        ]
        cells = [f"{share:.1%}" for share in shares] + [f"{found.coverage:.1%}", f"{found.mean_width:.3f}"]
        print(f"| {name} | {' | '.join(cells)} | {found.mean_bias:+.4f} |", flush=True)


def _percentile(fold: TestScores, rng: np.random.Generator, *, inflated: bool) -> tuple[float, float]:
    """Return the interval of a plain bootstrap over seeds and groups of a gain."""
    assert fold.resampled is not None
    values = fold.resampled[1] - fold.resampled[0]
    num_seeds, num_resamples = values.shape
    drawn = rng.integers(0, num_seeds, (num_seeds, num_resamples))
    gains = values[drawn, np.arange(num_resamples)].mean(axis=0)
    centre = float((fold.per_seed[1] - fold.per_seed[0]).mean())
    if inflated:
        gains = centre + (gains - centre) * np.sqrt(num_seeds / (num_seeds - 1))
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


def _satterthwaite(gain: Estimate, groups: float) -> tuple[float, float]:
    """Return the interval by one t whose degrees of freedom follow from both parts of the variance."""
    seeds = gain.seeds.variance
    spread = seeds**2 / gain.seeds.degrees + groups**2 / gain.groups.degrees
    half = t_quantile(0.95, (seeds + groups) ** 2 / spread) * float(np.sqrt(seeds + groups))
    return gain.mean - half, gain.mean + half


def constructions(fold: TestScores, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Return intervals of the gain of the second arm over the first, by construction."""
    assert fold.resampled is not None
    gain = gain_estimate([fold], fold.arms[1], fold.arms[0])
    whole = float((fold.resampled[1] - fold.resampled[0]).mean(axis=0).var(ddof=1))
    widest = t_quantile(0.95, gain.seeds.degrees) * gain.error
    return {
        "percentiles of resampled seeds and groups": _percentile(fold, rng, inflated=False),
        "the same, spread times sqrt(n / (n - 1))": _percentile(fold, rng, inflated=True),
        "sum of variances, normal": (gain.mean - 1.96 * gain.error, gain.mean + 1.96 * gain.error),
        "sum of variances, t of Satterthwaite": _satterthwaite(gain, gain.groups.variance),
        "the same, all of the variance over groups": _satterthwaite(gain, whole),
        "sum of variances, t with n - 1 degrees": (gain.mean - widest, gain.mean + widest),
        "t on seeds alone": replace(gain, groups=Part()).interval(),
        "a t for each part, squares added (taken)": gain.interval(),
    }


def print_constructions(num_studies: int) -> None:
    """Print coverage and mean width of each construction; the pair of arms is fixed, the true gain 0."""
    kinds = [(3, 30, 1), (3, 200, 1), (3, 200, 3), (5, 30, 1), (5, 200, 1), (5, 200, 3)]
    shown: dict[str, list[str]] = {}
    for num_seeds, num_groups, factor in kinds:
        world = World(
            num_without=1, num_with=1, num_seeds=num_seeds, num_groups=num_groups, own_sd_factors=(float(factor),)
        )
        rng = np.random.default_rng(1)
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(num_studies):
            for name, interval in constructions(study(world, rng)[0][0], rng).items():
                found.setdefault(name, []).append(interval)
        for name, intervals in found.items():
            low, high = np.array(intervals).T
            shown.setdefault(name, []).append(f"{np.mean((low <= 0) & (high >= 0)):.1%}, {np.mean(high - low):.3f}")
    names = [f"{s} seeds{f' that differ {f} times as much' if f > 1 else ''}, {g} groups" for s, g, f in kinds]
    print("\n| interval: coverage, width |", " | ".join(names), "|")
    print("|---" * (1 + len(kinds)) + "|")
    for name, cells in shown.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _max_t(gains: list[Estimate], draws: Floats) -> list[bool]:
    """Return which gains differ from zero by the largest of equally correlated normal values (Dunnett's test).

    The limit is stretched as the intervals are, so that it holds for few seeds.
    """
    limit = float(np.quantile(np.abs(draws).max(axis=1), 0.95))
    level = float(1 - np.mean(np.abs(draws[:, 0]) > limit))
    return [abs(gain.mean) > gain.half_width(level) for gain in gains]


def print_comparisons(num_studies: int) -> None:
    """Print how often any equal arm, and how often the better one, is told from the reference."""
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(20000, 6))
    draws = np.sqrt(0.5) * (normal[:, 1:] + normal[:, :1])
    tests: dict[str, Callable[[list[Estimate]], list[bool]]] = {
        "none": lambda gains: [gain.p_value() < 0.05 for gain in gains],
        "Holm": lambda gains: [p < 0.05 for p in holm([gain.p_value() for gain in gains])],
        "largest t": lambda gains: _max_t(gains, draws),
    }
    print("\n| correction | seeds | an equal arm differs | the arm with a gain of .06 differs |")
    print("|---|---|---|---|")
    for num_seeds in (3, 5):
        world = World(num_without=1, num_with=5, num_seeds=num_seeds)
        wrong, right = Counter[str](), Counter[str]()
        for gain in (0.0, 0.06):
            for _ in range(num_studies):
                folds, _ = study(replace(world, gain=gain), rng)
                gains = [gain_estimate(folds, arm, world.arms[0]) for arm in world.arms[1:]]
                for name, test in tests.items():
                    found = test(gains)
                    wrong[name] += any(found[1:]) if gain else any(found)
                    right[name] += bool(gain) and found[0]
        for name in tests:
            print(f"| {name} | {num_seeds} | {wrong[name] / 2 / num_studies:.1%} | {right[name] / num_studies:.1%} |")


def detections(rng: np.random.Generator, *, num_groups: int, num_seeds: int, skill: Mapping[str, float]) -> TestScores:
    """Draw a study of detections in test images of five classes, two images a group; score it as a run would.

    Args:
        rng: of the study.
        num_groups: of test images.
        num_seeds: of each arm.
        skill: of each arm; 1 raises the IoU of its detections by about a standard deviation.
    """
    num_images, num_classes = 2 * num_groups, 5
    true = [rng.integers(0, num_images, max(4, num_images // 3)) for _ in range(num_classes)]
    hard = rng.normal(0, 0.5, num_groups)
    paired = rng.normal(0, 0.12, num_seeds)
    tables: dict[str, list[MatchTable]] = {}
    for arm, of_arm in skill.items():
        on_group = rng.normal(0, 0.2, num_groups)
        for seed in range(num_seeds):
            level = of_arm + paired[seed] + rng.normal(0, 0.12)
            classes = {
                number: _drawn_matches(rng, images, level + (hard + on_group)[images // 2], num_images)
                for number, images in enumerate(true)
            }
            tables.setdefault(arm, []).append(MatchTable(num_images=num_images, classes=classes))
    groups = [f"{image // 2}" for image in range(num_images)]
    return scores_of_tables(tables, groups, num_resamples=RESAMPLES, seed=int(rng.integers(1 << 30)))


def _drawn_matches(rng: np.random.Generator, images: NDArray[np.int64], level: Floats, num_images: int) -> ClassMatches:
    """Draw one detection of each true instance, better ones with higher scores, and wrong ones elsewhere."""
    quality = level + rng.normal(0, 1, len(images))
    iou = 1 / (1 + np.exp(-0.9 * quality - 0.8))
    wrong = rng.integers(0, num_images, len(images))
    scores = np.r_[quality + rng.normal(0, 0.7, len(images)), rng.normal(-0.8, 1, len(wrong))]
    order = np.argsort(-scores, kind="stable")
    right = np.zeros((10, len(scores)), bool)
    right[:, : len(images)] = iou >= np.linspace(0.5, 0.95, 10)[:, None]
    return ClassMatches(
        scores=scores[order],
        image=np.r_[images, wrong][order],
        right=right[:, order],
        ignored=np.zeros_like(right),
        num_true=np.bincount(images, minlength=num_images),
    )


def print_detections(num_studies: int) -> None:
    """Print what the verdict says where segm mAP is computed from detections."""
    print("\n| segm mAP of detections, 5 classes | use it | do not use it | holds 0 | width | segm mAP | sd of seeds |")
    print("|---|---|---|---|---|---|---|")
    for num_seeds, num_groups in ((3, 30), (5, 30), (5, 100)):
        for worse in (0.0, -0.5):
            rng = np.random.default_rng(3)
            outcomes: Counter[str] = Counter()
            widths, held, scores, spread = [], [], [], []
            for _ in range(num_studies):
                skill = {"real": 0.0, "synthetic": worse}
                fold = detections(rng, num_groups=num_groups, num_seeds=num_seeds, skill=skill)
                judged = verdict([fold], uses_synthetic={"real": False, "synthetic": True})
                assert judged.interval is not None
                outcomes[judged.outcome] += 1
                widths.append(judged.interval[1] - judged.interval[0])
                held.append(judged.interval[0] <= 0 <= judged.interval[1])
                scores.append(fold.per_seed[0].mean())
                spread.append(fold.per_seed[0].var(ddof=1))
            name = f"{num_seeds} seeds, {num_groups} groups, {'planted failure' if worse else 'no difference'}"
            shares = [f"{outcomes[o] / num_studies:.1%}" for o in ("use it", "do not use it")]
            figures = [f"{np.mean(held):.1%}", f"{np.mean(widths):.3f}", f"{np.mean(scores):.3f}"]
            cells = [*shares, *figures, f"{np.sqrt(np.mean(spread)):.3f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    tables: dict[str, Callable[[int], None]] = {
        "outcomes": print_outcomes,
        "constructions": print_constructions,
        "comparisons": print_comparisons,
        "detections": print_detections,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--of", default="", help="part of the name of the kinds of study whose outcomes are printed")
    parser.add_argument("--seed", type=int, default=0, help="of these studies")
    args = parser.parse_args()
    tables["outcomes"] = partial(print_outcomes, of=args.of, seed=args.seed)
    for name in args.only:
        began = time.monotonic()
        tables[name](args.studies)
        print(f"\n{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
