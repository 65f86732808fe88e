from __future__ import annotations

from typing import Any

import pytest

from defectory.artifacts.certificate import Certificate, CertifiedUse
from defectory.drivers.config import DriverConfig
from defectory.drivers.leakage import Leakage
from defectory.report.content import Signature
from defectory.stages.parts.signatures import Memorisation, red_flags, signatures, split_signature

LABELS = {"train": {"pit": 9}, "val": {"pit": 9, "burn": 7}, "test": {"pit": 5, "burn": 9}}


def scores(**contrasts: tuple[float, float, int]) -> dict[str, Any]:
    return {
        "fidelity": {"accepted_share": 0.8, "mean": 0.6, "shuffled": 0.02},
        "image_sets": None,
        "arms": {},
        "verdict": {"outcome": "not enough evidence", "metric": "segm_map"},
        "defect_contrast": {
            name: {"synthetic": synthetic, "real": real, "num_synthetic": count, "num_real": 40}
            for name, (synthetic, real, count) in contrasts.items()
        },
    }


@pytest.mark.parametrize(
    ("contrasts", "detected", "advice"),
    [
        ({"pit": (0.5, 0.6, 30), "burn": (0.6, 0.5, 30)}, False, "follows"),
        ({"pit": (0.2, 0.6, 30), "burn": (0.6, 0.5, 30)}, True, "pit: set synthesis.mask_guidance above theirs"),
        ({"pit": (0.5, 0.6, 30), "burn": (0.9, 0.5, 30)}, True, "burn: set synthesis.mask_guidance below theirs"),
        (
            {"pit": (0.2, 0.6, 30), "burn": (0.9, 0.5, 30)},
            True,
            "table of contrasts; burn: set synthesis.mask_guidance below theirs",
        ),
        ({"pit": (0.2, 0.6, 3)}, None, "follows"),
        ({}, None, "follows"),
    ],
)
def test_weak_and_strong_defects_are_named_with_what_to_do(
    contrasts: dict[str, tuple[float, float, int]], detected: bool | None, advice: str
) -> None:
    found = {s.name: s for s in signatures(scores(**contrasts), None, None, drivers=DriverConfig(), labels=LABELS)}[
        "defects too weak or too strong"
    ]
    assert found.detected is detected
    assert advice in found.advice
    assert ("pit 0.33" in found.evidence) == (contrasts.get("pit") == (0.2, 0.6, 30))


@pytest.mark.parametrize(
    ("auc", "blind", "advice"), [(0.7, False, "drivers.defect_blind"), (0.7, True, "drivers tune"), (0.6, True, None)]
)
def test_leaking_drivers_are_named_with_the_option_that_helps(auc: float, blind: bool, advice: str | None) -> None:
    leak = Leakage(auc=auc, interval=(auc - 0.1, auc + 0.1), num_defective=40, num_defect_free=40)
    found = {
        s.name: s for s in signatures(scores(), leak, None, drivers=DriverConfig(defect_blind=blind), labels=LABELS)
    }["driver leakage"]
    assert found.detected == (advice is not None)
    assert f"{auc:.2f}" in found.evidence
    assert advice is None or advice in found.advice


@pytest.mark.parametrize(
    ("maps", "detected"),
    [
        ({"real": 0.0, "synthetic": 0.2}, True),
        ({"real": 0.0, "synthetic": 0.0}, True),
        ({"real": 0.03}, False),
        ({}, None),
    ],
)
def test_an_arm_that_learnt_nothing_is_named(maps: dict[str, float], detected: bool | None) -> None:
    """A gain over a collapsed segmenter is no gain."""
    given = {**scores(), "arms": {arm: {"segm_map": value} for arm, value in maps.items()}}
    found = {s.name: s for s in signatures(given, None, None, drivers=DriverConfig(), labels=LABELS)}[
        "segmenter collapse"
    ]
    assert found.detected is detected
    assert all(f"{arm} {value:.3f}" in found.evidence for arm, value in maps.items())
    assert ("real" in found.advice) == bool(detected)


def test_an_arm_whose_pixels_are_found_has_not_collapsed() -> None:
    thin = {"real": {"segm_map": 0.0, "pixel_ap": 0.12}, "mixed": {"segm_map": 0.0, "pixel_ap": 0.01}}
    found = judged(arms=thin)["segmenter collapse"]
    assert (found.detected, found.figure) == (True, "segm mAP of mixed 0.000, limit 0.005")
    assert not judged(arms={"real": thin["real"]})["segmenter collapse"].detected


def judged(*, labels: dict[str, dict[str, int]] | None = None, **changes: Any) -> dict[str, Signature]:
    """Judge a run in which nothing is wrong but the given."""
    leak = Leakage(auc=changes.pop("auc", 0.5), interval=(0.4, 0.6), num_defective=40, num_defect_free=40)
    copied = Memorisation(draft_to_train=1.0, train_to_train=1.0, copied_share=changes.pop("copied", 0.0))
    given = {**scores(pit=(0.5, 0.5, 30)), "arms": {"real": {"segm_map": 0.3}}, "image_sets": image_sets()} | changes
    found = signatures(given, leak, copied, drivers=DriverConfig(), labels=labels or LABELS)
    return {s.name: s for s in found}


def test_a_sound_run_has_no_red_flag_and_an_open_verdict_is_none() -> None:
    assert red_flags(list(judged().values())) == []


def test_a_gain_of_nothing_is_a_red_flag_too() -> None:
    found = judged(
        verdict={"outcome": "no worse and no better", "metric": "segm_map", "gain": 0.001, "interval": [-0.009, 0.011]}
    )
    assert [s.name for s in red_flags(list(found.values()))] == ["no downstream gain"]


def test_every_planted_failure_is_a_red_flag_with_its_figure_and_limit() -> None:
    found = judged(
        auc=0.89,
        copied=0.09,
        labels={**LABELS, "test": {"pit": 2, "burn": 9}},
        arms={"real": {"segm_map": 0.001}},
        fidelity={"accepted_share": 0.12, "mean": 0.08, "shuffled": 0.02},
        verdict={"outcome": "do not use it", "metric": "pixel_ap", "gain": -0.012, "interval": [-0.02, -0.004]},
        defect_contrast=scores(pit=(0.2, 0.6, 30))["defect_contrast"],
    )
    assert {s.name: s.figure for s in red_flags(list(found.values()))} == {
        "synthetic quality too poor": "12% of drafts accepted, limit 25%",
        "no downstream gain": "gain in pixel AP -0.012 (-0.020 to -0.004), needed above 0",
        "segmenter collapse": "segm mAP of real 0.001, limit 0.005",
        "control collapse": "mean fidelity 0.08, limit 0.15",
        "defects too weak or too strong": "contrast relative to train tiles: pit 0.33, limits 0.67 and 1.50",
        "memorisation": "9% of drafts are near-copies of train tiles, limit 5%",
        "driver leakage": "AUC 0.89, limit 0.65",
        "few held-out defects": "test: pit 2, limit 5 of each class",
    }


def image_sets(
    *,
    mean: float = 2.0,
    floor: float = 2.0,
    kid: tuple[float, float] = (-0.001, 0.01),
    kid_floor: tuple[float, float] = (-0.002, 0.002),
) -> dict[str, Any]:
    """Scores of drafts as a set: how far the means of tiles are from test tiles, and the intervals of KID."""
    return {
        "mean_wasserstein": mean,
        "mean_wasserstein_floor": floor,
        "std_wasserstein": 1.0,
        "std_wasserstein_floor": 1.0,
        "kid": sum(kid) / 2,
        "kid_floor": sum(kid_floor) / 2,
        "kid_floor_interval": kid_floor,
        "kid_interval": kid,
        "coverage_train": 0.41,
        "images_least_like_train": ("b.png", "a.png"),
    }


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (image_sets(mean=40.0, floor=3.0), "tones 13.3 times the floor, limit 2, and 37 grey levels above it"),
        (image_sets(kid=(0.15, 0.25)), "KID 0.200, surely above 0.150, limit 0.100"),
        (image_sets(mean=6.2, floor=3.0), None),
        (image_sets(mean=60.0, floor=40.0), None),
        (image_sets(kid=(0.02, 0.3)), None),
        (image_sets(kid=(0.8, 1.8), kid_floor=(0.1, 0.9)), None),
        (image_sets(kid=(1.1, 1.8), kid_floor=(0.1, 0.9)), "KID 1.450, surely above 1.100, limit 1.000"),
    ],
)
def test_poor_quality_is_a_clear_distance_of_tones_or_of_features(sets: dict[str, Any], told: str | None) -> None:
    found = judged(image_sets=sets)["synthetic quality too poor"]
    assert found.detected is (told is not None)
    if told is not None:
        assert found.figure == told


@pytest.mark.parametrize(("low", "detected"), [(0.129, True), (-0.2, False)])
def test_surfaces_that_train_lacks_are_told_with_test_images_that_show_them(low: float, detected: bool) -> None:
    found = judged(image_sets=image_sets(kid=(0.3, 1.2), kid_floor=(low, 0.919)))["train unlike test"]
    assert found.detected is detected
    assert "b.png, a.png" in found.evidence
    assert "41% of test tiles" in found.evidence
    assert ("Add labelled images" in found.advice) is detected
    assert found.figure.endswith(f"surely above {low:.3f}, limit 0.100")


def test_what_was_not_measured_is_not_called_alike() -> None:
    found = judged(image_sets=None)["train unlike test"]
    assert found.detected is None
    assert found.advice == "Label more images, so that it can be told."


def test_the_figure_of_masks_that_make_no_difference_names_the_limit_that_was_passed() -> None:
    found = judged(fidelity={"accepted_share": 0.8, "mean": 0.3, "shuffled": 0.2})
    assert found["control collapse"].figure == "mean fidelity 0.30, limit 0.40"


def test_what_could_not_be_measured_is_a_red_flag_that_says_why() -> None:
    found = signatures(scores(), None, None, drivers=DriverConfig(), labels=LABELS)
    flags = {s.name: s.figure for s in red_flags(found)}
    assert flags == {
        "train unlike test": "fewer than 4 drafts, or tiles with defects in train or test",
        "segmenter collapse": "no segmenter was trained",
        "defects too weak or too strong": "no class has 8 defects in both drafts and train tiles",
        "memorisation": "fewer than 4 drafts or train tiles",
        "driver leakage": "fewer than 10 tiles with defects, or without",
    }


def test_of_many_classes_the_first_screen_names_a_few() -> None:
    labels = {**LABELS, "test": {f"class {number}": 2 for number in range(30)}}
    found = judged(labels=labels)["few held-out defects"]
    assert found.figure.endswith("class 4 2 and 25 more, limit 5 of each class")
    assert "class 29 2" in found.evidence


@pytest.mark.parametrize(("crossed", "detected"), [((), False), (("test image 7",), True)])
def test_a_broken_certificate_is_a_red_flag(crossed: tuple[str, ...], detected: bool) -> None:
    use = CertifiedUse(
        consumer="mask bank", may_use=("train",), num_images=3, images_digest="i", files=(), crossed=crossed
    )
    certificate = Certificate(
        dataset_digest="d", split_digest="s", num_images=9, num_compared=9, duplicate_threshold=0.8, uses=(use,)
    )
    found = split_signature(certificate)
    assert found.detected is detected
    assert [flag.name for flag in red_flags([found])] == (["split broken"] if detected else [])
    assert ("mask bank: test image 7" in found.evidence) is detected
