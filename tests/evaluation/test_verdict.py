"""The four outcomes, what is compared, and how often the verdict errs on simulated studies."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.verdict import Verdict
from defectory.errors import InputError
from defectory.evaluation.statistics import TestScores, gain_estimate, scores_of_seeds
from defectory.evaluation.verdict import verdict

ARMS = {"real": False, "copy_paste": False, "mixed": True, "synthetic": True}
REAL = (0.30, 0.32, 0.31)


def judge(mixed: Sequence[float], real: Sequence[float] = REAL, **changes: Any) -> Verdict:
    return verdict([scores_of_seeds({"real": real, "mixed": mixed})], uses_synthetic=ARMS, **changes)


def bench() -> Any:
    """The simulation, which is no module of the package."""
    path = Path(__file__).parents[2] / "bench" / "verdict.py"
    spec = importlib.util.spec_from_file_location("bench_verdict", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("mixed", "outcome"),
    [
        ((0.40, 0.43, 0.41), "use it"),
        ((0.20, 0.23, 0.21), "do not use it"),
        ((0.301, 0.319, 0.31), "no worse and no better"),
        ((0.30, 0.36, 0.34), "not enough evidence"),
        ((0.30, 0.26, 0.28), "not enough evidence"),
        ((0.315, 0.335, 0.325), "no worse and no better"),
    ],
)
def test_the_outcome_follows_from_the_interval(mixed: Sequence[float], outcome: str) -> None:
    judged = judge(mixed)
    assert judged.outcome == outcome
    assert judged.sentence.startswith(outcome.capitalize())
    assert judged.interval is not None
    assert judged.interval[0] <= np.mean(mixed) - np.mean(REAL) <= judged.interval[1]


def test_a_loss_is_judged_as_a_gain_is() -> None:
    """Exchanging the two arms turns `use it` into `do not use it`, and changes neither of the other outcomes."""
    mirrored = {"use it": "do not use it", "do not use it": "use it"}
    rng = np.random.default_rng(0)
    seen: set[str] = set()
    for gain in np.linspace(-0.1, 0.1, 11):
        for seed_sd in (0.003, 0.03):
            real = 0.3 + rng.normal(0, seed_sd, 4)
            mixed = real + gain + rng.normal(0, seed_sd, 4)
            outcome = judge(mixed, real).outcome
            assert judge(real, mixed).outcome == mirrored.get(outcome, outcome)
            seen.add(outcome)
    assert len(seen) == 4


def test_the_sentence_names_arms_gain_and_interval() -> None:
    judged = judge((0.40, 0.43, 0.41))
    assert judged.sentence == (
        "Use it: segm mAP 0.413 with mixed, 0.310 with real: +0.103 (95% interval +0.089 to +0.118; 3 seeds, test "
        "images taken as given)."
    )
    assert Verdict.model_validate_json(judged.model_dump_json()) == judged


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_fewer_than_three_seeds_are_never_enough(num_seeds: int) -> None:
    judged = judge([0.9, 0.9][:num_seeds], [0.1, 0.1][:num_seeds])
    assert (judged.outcome, judged.interval, judged.more_needed) == ("not enough evidence", None, None)
    assert judged.gain == pytest.approx(0.8)
    assert f"from {num_seeds} seed" in judged.sentence


def test_both_sides_are_needed() -> None:
    judged = verdict([scores_of_seeds({"real": REAL})], uses_synthetic=ARMS)
    assert judged.sentence == "Not enough evidence: no arm with synthetic data was trained."
    nothing = verdict([scores_of_seeds({})], uses_synthetic=ARMS)
    assert "no arm without synthetic data and none with synthetic data" in nothing.sentence


def test_validation_chooses_what_is_compared_and_test_does_not() -> None:
    scores = scores_of_seeds(
        {
            "real": (0.30, 0.31, 0.32),
            "copy_paste": (0.35, 0.36, 0.37),
            "mixed": (0.40, 0.41, 0.43),
            "synthetic": (0.60, 0.61, 0.62),
        }
    )
    validation = {"real": [0.2] * 3, "copy_paste": [0.4] * 3, "mixed": [0.5] * 3, "synthetic": [0.1] * 3}
    judged = verdict([scores], uses_synthetic=ARMS, validation=validation)
    assert (judged.reference, judged.candidate) == ("copy_paste", "mixed")
    assert judged.gain == pytest.approx(0.41333 - 0.36, abs=1e-4)
    figures = {of.arm: of for of in judged.arms}
    assert figures["copy_paste"].gain is None
    assert figures["synthetic"].gain == pytest.approx(0.25)
    assert figures["synthetic"].p_value is not None
    assert figures["synthetic"].p_value < 0.01


def test_luck_in_the_choice_is_taken_off_the_gain() -> None:
    """Arms are alike but for the luck of seeds, which validation shares with test; a clear choice needs no luck."""
    rng = np.random.default_rng(0)
    biases: list[float] = []
    gains: list[float] = []
    for _ in range(200):
        found = {arm: list(0.3 + rng.normal(0, 0.03, 5)) for arm in ("real", "mixed", "synthetic", "a", "b")}
        uses = dict.fromkeys(found, True) | {"real": False}
        judged = verdict([scores_of_seeds(found)], uses_synthetic=uses, validation=found)
        assert judged.gain is not None
        biases.append(judged.selection_bias)
        gains.append(judged.gain)
        assert judged.selection_bias > 0
    # the best of four means of five seeds is 1.03 * .03 / sqrt(5) too high
    assert np.mean(gains) + np.mean(biases) == pytest.approx(1.03 * 0.03 / 5**0.5, abs=0.003)
    assert np.mean(biases) > 0.4 * 1.03 * 0.03 / 5**0.5
    clear = {"real": list(REAL), "mixed": [0.5, 0.52, 0.51], "synthetic": [0.1, 0.12, 0.11]}
    judged = verdict([scores_of_seeds(clear)], uses_synthetic=ARMS, validation=clear)
    assert judged.selection_bias == pytest.approx(0, abs=1e-3)


def test_what_found_nothing_is_no_evidence() -> None:
    judged = judge((0.0, 0.0, 0.0), (0.0, 0.001, 0.0))
    assert judged.outcome == "not enough evidence"
    assert "neither real nor mixed found anything" in judged.sentence


def test_where_no_mask_covers_half_pixels_are_told() -> None:
    pixels = scores_of_seeds({"real": (0.10, 0.12, 0.11), "mixed": (0.16, 0.18, 0.175)})
    judged = judge((0.0, 0.001, 0.0), (0.0, 0.0, 0.0), pixel_ap=lambda: [pixels])
    gain = gain_estimate([pixels], "mixed", "real")
    assert judged.outcome == "not enough evidence"
    assert (judged.pixel_ap_gain, judged.pixel_ap_interval) == (gain.mean, gain.interval())
    assert "Pixel AP 0.172 with mixed, 0.110 with real: +0.062 (95% interval +0." in judged.sentence
    silent = scores_of_seeds({"real": (0.0, 0.0, 0.0), "mixed": (0.0, 0.0, 0.001)})
    judged = judge((0.0, 0.001, 0.0), (0.0, 0.0, 0.0), pixel_ap=lambda: [silent])
    assert (judged.pixel_ap_gain, "found anything" in judged.sentence) == (None, True)


def test_pixels_are_not_asked_for_where_segm_map_tells() -> None:
    def never() -> list[TestScores]:
        raise AssertionError

    assert judge((0.40, 0.43, 0.41), pixel_ap=never).pixel_ap_gain is None


def test_an_arm_that_is_not_known_or_a_score_that_is_no_number_is_refused() -> None:
    scores = scores_of_seeds({"real": REAL, "other": REAL})
    with pytest.raises(InputError, match="arm other: it is not known whether it uses synthetic data"):
        verdict([scores], uses_synthetic=ARMS)
    two = scores_of_seeds({"real": REAL, "copy_paste": REAL, "mixed": REAL})
    with pytest.raises(InputError, match="arm copy_paste: its segm mAP on validation is not known"):
        verdict([two], uses_synthetic=ARMS, validation={"real": [0.1]})
    with pytest.raises(InputError, match="arm real: its segm mAP on validation is nan"):
        verdict([two], uses_synthetic=ARMS, validation={"real": [float("nan")], "copy_paste": [0.1]})
    with pytest.raises(InputError, match="arm copy_paste: 1 figures on validation, 3 on test"):
        verdict([two], uses_synthetic=ARMS, validation={"real": [0.1] * 3, "copy_paste": [0.1]})
    broken = replace(scores, arms=("real", "mixed"), per_seed=np.array([[0.1, 0.1, 0.1], [0.1, np.nan, 0.1]]))
    with pytest.raises(InputError, match="arm mixed: a score is not a finite number"):
        verdict([broken], uses_synthetic=ARMS)
    with pytest.raises(InputError, match="train the same arms in every fold"):
        verdict([scores, two], uses_synthetic=ARMS | {"other": True})


def crossed(*, seed_sd: float, group_sd: float, gain: float) -> TestScores:
    """Three seeds and 40 groups, with exactly these standard deviations of the gain."""
    seeds = gain + seed_sd * np.array([-1.0, 0.0, 1.0])
    rng = np.random.default_rng(0)
    over_groups = group_sd * rng.normal(size=4000) / np.sqrt(40)
    return TestScores(
        arms=("real", "mixed"),
        per_seed=np.array([np.full(3, 0.3), 0.3 + seeds]),
        resampled=np.stack([np.full((3, 4000), 0.3), 0.3 + seeds[:, None] + over_groups]),
        num_groups=40,
        num_images=100,
    )


def test_what_would_settle_it_follows_from_the_part_that_hides_the_gain() -> None:
    noisy_seeds = verdict([crossed(seed_sd=0.04, group_sd=0.001, gain=0.04)], uses_synthetic=ARMS)
    assert noisy_seeds.outcome == "not enough evidence"
    assert noisy_seeds.more_needed is not None
    # t(6) * .04 / sqrt(7) = .037 is below .04, and t(5) * .04 / sqrt(6) = .042 is not
    assert (noisy_seeds.more_needed.seeds, noisy_seeds.more_needed.images) == (4, None)
    assert noisy_seeds.sentence.endswith("About 4 more seeds would settle it.")

    few_images = verdict([crossed(seed_sd=0.002, group_sd=0.2, gain=0.04)], uses_synthetic=ARMS)
    assert few_images.outcome == "not enough evidence"
    assert few_images.more_needed is not None
    assert few_images.more_needed.seeds is None
    assert few_images.more_needed.images is not None
    # 2 * .2 / sqrt(n) = .04 at 100 groups, so at 250 images
    images = few_images.more_needed.images
    assert 120 < images < 190
    assert images % 10 == 0
    assert few_images.sentence.endswith(f"About {images} more test images would settle it.")

    both = verdict([crossed(seed_sd=0.08, group_sd=0.4, gain=0.04)], uses_synthetic=ARMS)
    assert both.more_needed is not None
    assert both.more_needed.factor is not None
    assert both.more_needed.factor > 4


def test_more_seeds_and_images_do_settle_it() -> None:
    """The answer is tried out: with as many seeds as it asks for, the same spread gives a clear verdict."""
    judged = verdict([crossed(seed_sd=0.04, group_sd=0.001, gain=0.04)], uses_synthetic=ARMS)
    assert judged.more_needed is not None
    assert judged.more_needed.seeds is not None
    count = 3 + judged.more_needed.seeds

    def outcome(num_seeds: int) -> str:
        spread = np.linspace(-1, 1, num_seeds)
        return judge(list(0.34 + 0.04 * spread / spread.std(ddof=1)), [0.3] * num_seeds).outcome

    assert (outcome(count), outcome(count - 1)) == ("use it", "not enough evidence")


@pytest.mark.parametrize(
    "kind", [{"num_seeds": 3, "num_groups": 60}, {"num_without": 1, "num_with": 5}, {"own_sd_factors": (0.5, 1, 2)}]
)
def test_simulated_studies_without_a_difference_are_rarely_decided(kind: dict[str, Any]) -> None:
    """Bounds are three standard errors wide of 3.5% and 93 to 97%; `python bench/verdict.py` runs 1,000 of each."""
    simulation = bench()
    found = simulation.tally(simulation.World(**kind), 250)
    assert found.outcomes.get("use it", 0) <= 0.07
    assert found.outcomes.get("do not use it", 0) <= 0.07
    assert found.coverage >= 0.89


def test_simulated_studies_with_a_gain_are_found() -> None:
    simulation = bench()
    found = simulation.tally(simulation.World(num_without=1, num_with=1, gain=0.07), 150)
    assert found.outcomes.get("use it", 0) >= 0.8
    assert found.outcomes.get("do not use it", 0) == 0
    lost = simulation.tally(simulation.World(num_without=1, num_with=1, gain=-0.07), 150)
    assert lost.outcomes.get("do not use it", 0) >= 0.8
    assert found.coverage >= 0.89


def test_a_segmenter_of_shuffled_labels_is_never_used() -> None:
    """Detections as in a run; the arm with synthetic data finds much less, as after training on wrong labels."""
    simulation = bench()
    rng = np.random.default_rng(0)
    for _ in range(10):
        fold = simulation.detections(rng, num_groups=30, num_seeds=3, skill={"real": 0.0, "mixed": -1.0})
        judged = verdict([fold], uses_synthetic=ARMS)
        assert judged.outcome in ("do not use it", "not enough evidence")
        assert judged.gain is not None
        assert judged.gain < 0


def test_where_pixels_decide_the_outcome_is_in_pixel_ap() -> None:
    judged = judge((0.16, 0.18, 0.17), (0.11, 0.13, 0.12), metric="pixel_ap")
    assert (judged.outcome, judged.metric, judged.pixel_ap_gain) == ("use it", "pixel_ap", None)
    assert judged.sentence.startswith("Use it: pixel AP 0.170 with mixed, 0.120 with real: +0.050")
    assert "segm mAP" not in judged.sentence
    nothing = judge((0.01, 0.02, 0.01), (0.01, 0.01, 0.01), metric="pixel_ap")
    assert nothing.outcome == "not enough evidence"
    assert "neither real nor mixed found anything (pixel AP below 0.05)" in nothing.sentence
