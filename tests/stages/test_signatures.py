from __future__ import annotations

from typing import Any

import pytest

from defectory.drivers.config import DriverConfig
from defectory.drivers.leakage import Leakage
from defectory.stages.parts.signatures import signatures


def scores(**contrasts: tuple[float, float, int]) -> dict[str, Any]:
    return {
        "fidelity": {"accepted_share": 0.8, "mean": 0.6, "shuffled": 0.02},
        "image_sets": None,
        "arms": {},
        "verdict": {"outcome": "not enough evidence"},
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
    found = {s.name: s for s in signatures(scores(**contrasts), None, None, drivers=DriverConfig())}[
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
    found = {s.name: s for s in signatures(scores(), leak, None, drivers=DriverConfig(defect_blind=blind))}[
        "driver leakage"
    ]
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
    found = {s.name: s for s in signatures(given, None, None, drivers=DriverConfig())}["segmenter collapse"]
    assert found.detected is detected
    assert all(f"{arm} {value:.3f}" in found.evidence for arm, value in maps.items())
    assert ("real" in found.advice) == bool(detected)
