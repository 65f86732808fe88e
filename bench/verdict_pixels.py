"""How often the verdict in pixel AP is right, on simulated studies of thin defects whose true gain is known.

Every test image has one long defect, of which each segmenter finds pieces, with a border that is too wide and some
false pieces. Pixels are scored as a run scores them. Sizes, shares found, scores and the spread of seeds are those of
the U-Net on photographs of road cracks: four arms, few test images, fewer validation images. Run:
`python bench/verdict_pixels.py [--studies 1000] [--seed 0] [--of NAME]`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from defectory.evaluation.match_tables import MatchTable
from defectory.evaluation.statistics import resampled_scores
from defectory.evaluation.tables import ClassPixels, ScoreTable, table_pixel_ap
from defectory.evaluation.verdict import verdict

Floats = NDArray[np.float64]
NUM_PX = 480 * 320
RESAMPLES = 300
USES_SYNTHETIC = {"real": False, "copy_paste": False, "mixed": True, "hybrid": True}


@dataclass(frozen=True, kw_only=True)
class World:
    """A kind of study.

    Attributes:
        num_seeds: of each arm.
        num_groups: of test images; each has one image.
        num_val: validation images of each seed.
        skill: of arms that differ from the others; 1 raises the logit of the share of a defect that is found by 1.
        seed_sd: of what a seed does to the skill of every arm alike, and as much to each arm by itself.
    """

    num_seeds: int = 3
    num_groups: int = 24
    num_val: int = 3
    skill: Mapping[str, float] | None = None
    seed_sd: float = 0.17

    def skill_of(self, arm: str) -> float:
        """Return the skill of an arm."""
        return (self.skill or {}).get(arm, 0.0)


def drawn_table(rng: np.random.Generator, level: Floats, num_true_px: NDArray[np.int64]) -> ScoreTable:
    """Draw what a segmenter of that skill on each image [images] finds of defects of so many pixels [images]."""
    num_images, num_pieces, num_false = len(level), 3, 5
    shares = rng.dirichlet(np.full(num_pieces, 1.5), num_images)
    quality = level[:, None] + rng.normal(0, 0.5, (num_images, num_pieces))
    found = shares * _logistic(0.9 + quality)
    right_px = np.round(found * num_true_px[:, None]).astype(np.int64)
    wrong_px = np.round(right_px * rng.uniform(0.15, 0.5, right_px.shape)).astype(np.int64)
    scores = _logistic(1.0 + 0.7 * quality + rng.normal(0, 0.5, quality.shape))
    false_px = np.round(rng.lognormal(3.4, 1.0, (num_images, num_false))).astype(np.int64)
    false_scores = _logistic(-0.8 - 0.3 * level[:, None] + rng.normal(0, 0.6, false_px.shape))
    image = np.repeat(np.arange(num_images), num_pieces + num_false)
    all_scores = np.concatenate([scores, false_scores], axis=1).ravel()
    order = np.argsort(-all_scores, kind="stable")
    pixels = ClassPixels(
        scores=all_scores[order],
        image=image[order],
        right_px=np.concatenate([right_px, np.zeros_like(false_px)], axis=1).ravel()[order],
        wrong_px=np.concatenate([wrong_px, false_px], axis=1).ravel()[order],
        num_true_px=num_true_px,
        num_px=np.full(num_images, NUM_PX, np.int64),
    )
    counts, flags = np.zeros(num_images, np.int64), np.zeros(num_images, bool)
    return ScoreTable(
        image_ids=np.arange(num_images),
        matches=MatchTable(num_images=num_images, classes={}),
        pixels={1: pixels},
        num_defects=counts,
        num_missed=counts,
        is_good=flags,
        is_alarmed=flags,
    )


def study(world: World, rng: np.random.Generator) -> tuple[dict[str, list[ScoreTable]], dict[str, list[float]]]:
    """Draw a study: tables of test, and pixel AP on validation, of each arm's seeds."""
    test: dict[str, list[ScoreTable]] = {arm: [] for arm in USES_SYNTHETIC}
    validation: dict[str, list[float]] = {arm: [] for arm in USES_SYNTHETIC}
    px, val_px = _sizes(rng, world.num_groups), [_sizes(rng, world.num_val) for _ in range(world.num_seeds)]
    hard, val_hard = _hard(rng, world.num_groups), [_hard(rng, world.num_val) for _ in range(world.num_seeds)]
    paired = rng.normal(0, world.seed_sd, world.num_seeds)
    for arm in USES_SYNTHETIC:
        of_arm = rng.normal(0, 0.15, world.num_groups)
        for seed in range(world.num_seeds):
            level = world.skill_of(arm) + paired[seed] + rng.normal(0, world.seed_sd)
            test[arm].append(drawn_table(rng, level + hard + of_arm, px))
            on_val = drawn_table(rng, level + val_hard[seed] + rng.normal(0, 0.15, world.num_val), val_px[seed])
            validation[arm].append(float(table_pixel_ap(on_val)[0]))
    return test, validation


def _sizes(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    return np.round(rng.lognormal(np.log(2100), 0.65, count)).astype(np.int64)


def _hard(rng: np.random.Generator, count: int) -> Floats:
    """Return how much each image adds to the skill, 0 in the mean; skewed, since a few are very hard."""
    return 1 - rng.exponential(1, count)


def _logistic(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


def expected(world: World) -> dict[str, float]:
    """Return the expected pixel AP of each arm on test parts of that size, from 4,000 tables of each."""
    rng = np.random.default_rng(100)
    found: dict[float, float] = {}
    for arm in USES_SYNTHETIC:
        skill = world.skill_of(arm)
        if skill not in found:
            one_arm = replace(world, skill=dict.fromkeys(USES_SYNTHETIC, skill), num_seeds=1)
            tables = [t for _ in range(1000) for of in study(one_arm, rng)[0].values() for t in of]
            found[skill] = float(np.mean([table_pixel_ap(table)[0] for table in tables]))
    return {arm: found[world.skill_of(arm)] for arm in USES_SYNTHETIC}


WORLDS: dict[str, World] = {
    "no difference, 3 seeds, 24 images": World(),
    "no difference, 5 seeds, 24 images": World(num_seeds=5),
    "no difference, 5 seeds, 100 images": World(num_seeds=5, num_groups=100),
    "no difference, 3 seeds that differ twice as much, 24 images": World(seed_sd=0.34),
    "drafts better by .5, 5 seeds, 24 images": World(num_seeds=5, skill={"mixed": 0.5, "hybrid": 0.5}),
    "drafts better by 1, 3 seeds, 24 images": World(skill={"mixed": 1.0, "hybrid": 1.0}),
    "drafts worse by 1, 3 seeds, 24 images": World(skill={"mixed": -1.0, "hybrid": -1.0}),
}


def print_row(name: str, world: World, num_studies: int, *, seed: int) -> None:
    """Judge many studies of one kind, and print how often each outcome came out."""
    rng = np.random.default_rng(seed)
    truth = expected(world)
    outcomes: Counter[str] = Counter()
    held, widths, biases, spread = [], [], [], []
    for _ in range(num_studies):
        test, validation = study(world, rng)
        fold = resampled_scores(
            test,
            table_pixel_ap,
            [f"{image}" for image in range(world.num_groups)],
            has_defects=np.ones(world.num_groups, bool),
            num_resamples=RESAMPLES,
            seed=int(rng.integers(1 << 30)),
        )
        judged = verdict([fold], uses_synthetic=USES_SYNTHETIC, validation=validation, metric="pixel_ap")
        assert judged.interval is not None
        assert judged.gain is not None
        true_gain = truth[str(judged.candidate)] - truth[str(judged.reference)]
        outcomes[judged.outcome] += 1
        held.append(judged.interval[0] <= true_gain <= judged.interval[1])
        widths.append(judged.interval[1] - judged.interval[0])
        biases.append(judged.gain - true_gain)
        spread.append(fold.per_seed.var(axis=1, ddof=1).mean())
    told = ("use it", "no worse and no better", "do not use it", "not enough evidence")
    cells = [f"{outcomes[outcome] / num_studies:.1%}" for outcome in told]
    cells += [f"{np.mean(held):.1%}", f"{np.mean(widths):.3f}", f"{np.mean(biases):+.4f}"]
    cells += [f"{truth['real']:.3f}", f"{truth['mixed'] - truth['real']:+.3f}", f"{np.sqrt(np.mean(spread)):.3f}"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of these studies")
    parser.add_argument("--of", default="", help="part of the name of the kinds of study that are printed")
    args = parser.parse_args()
    began = time.monotonic()
    print(
        "| studies in pixel AP | use it | no worse, no better | do not use it | open | coverage | width "
        "| bias of the gain | pixel AP of real | true gain | sd of seeds |"
    )
    print("|---" * 11 + "|")
    for name, world in WORLDS.items():
        if args.of in name:
            print_row(name, world, args.studies, seed=args.seed)
    print(f"\n{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
