from __future__ import annotations

import cv2
import numpy as np
import pytest

from defectory.curation.calibration import calibrate, degrade
from defectory.curation.fidelity import f1_with_tolerance, iou, score
from defectory.procedural.world import render_pair

SIZE_HW = (64, 96)


@pytest.fixture
def surface() -> np.ndarray:
    return np.random.default_rng(0).integers(120, 128, (*SIZE_HW, 3)).astype(np.uint8)


def block(top: int, left: int, height: int = 16, width: int = 20) -> np.ndarray:
    mask = np.zeros(SIZE_HW, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def painted(image: np.ndarray, mask: np.ndarray, level: int = 30) -> np.ndarray:
    result = image.copy()
    result[mask] = level
    return result


def test_a_defect_drawn_exactly_in_its_label_scores_near_one(surface: np.ndarray) -> None:
    label = block(20, 30)
    result = score(painted(surface, label), surface, [label], difference_threshold=18)
    assert result.iou > 0.8
    assert result.outside_fraction < 0.2


def test_nothing_drawn_scores_zero(surface: np.ndarray) -> None:
    result = score(surface, surface, [block(20, 30)], difference_threshold=18)
    assert (result.iou, result.outside_fraction) == (0.0, 0.0)


def test_a_defect_drawn_elsewhere_scores_zero_and_is_told_as_outside(surface: np.ndarray) -> None:
    result = score(painted(surface, block(40, 60)), surface, [block(4, 4)], difference_threshold=18)
    assert result.iou == 0
    assert result.outside_fraction == 1


def test_a_smooth_drift_of_tone_is_not_taken_for_a_defect(surface: np.ndarray) -> None:
    label = block(20, 30)
    ramp = np.linspace(0, 40, SIZE_HW[1])[None, :, None]
    drifted = np.clip(painted(surface, label) + ramp, 0, 255).astype(np.uint8)
    assert score(drifted, surface, [label], difference_threshold=18).iou > 0.7


def test_each_instance_is_scored_on_its_own(surface: np.ndarray) -> None:
    drawn, missing = block(5, 5), block(40, 70)
    result = score(painted(surface, drawn), surface, [drawn, missing], difference_threshold=18)
    assert result.per_instance_iou[0] > 0.8
    assert result.per_instance_iou[1] == 0
    assert result.iou == pytest.approx(result.per_instance_iou[0] * 0.5, abs=0.1)


def test_thin_instances_are_also_scored_with_two_pixels_of_tolerance(surface: np.ndarray) -> None:
    thin = block(30, 20, 2, 50)
    shifted = np.roll(thin, 2, axis=0)
    result = score(painted(surface, shifted), surface, [thin], difference_threshold=18)
    assert result.iou < 0.35
    assert result.f1_2px[0] is not None
    assert result.f1_2px[0] > 0.8
    assert score(painted(surface, block(20, 30)), surface, [block(20, 30)], difference_threshold=18).f1_2px == (None,)


def test_f1_with_tolerance_in_closed_form() -> None:
    mask, far = block(10, 10, 4, 40), block(50, 10, 4, 40)
    assert f1_with_tolerance(mask, mask) == 1
    assert f1_with_tolerance(far, mask) == 0
    assert f1_with_tolerance(mask | far, mask) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert iou(mask | far, mask) == pytest.approx(0.5)


def test_the_shipped_threshold_is_the_best_on_procedural_pairs_and_labels_matter() -> None:
    from defectory.curation.config import CurationConfig

    pairs = []
    for seed in range(3_000_000_000, 3_000_000_040):
        shown, hidden = render_pair(seed)
        masks = [m for _, m in shown.instances]
        if masks:
            blur = {"blur_px": 0.8, "noise_sigma": 2.0, "drift": 6.0}
            pairs.append((degrade(shown.image, seed=seed % 1000, **blur), degrade(hidden.image, seed=seed % 1000 + 5000, **blur), masks))
    shipped = CurationConfig().difference_threshold
    found = calibrate(pairs, [shipped / 3, shipped, shipped * 2.5])
    assert max(found, key=lambda t: found[t]) == shipped
    others = [(a, b, pairs[(i + 7) % len(pairs)][2]) for i, (a, b, _) in enumerate(pairs)]
    assert calibrate(others, [shipped])[shipped] < 0.12 < found[shipped]


def test_shared_defects_in_both_halves_cancel(surface: np.ndarray) -> None:
    """The measure's known blind spot: what both halves draw is not seen."""
    both = painted(surface, cv2.dilate(block(20, 30).astype(np.uint8), np.ones((3, 3))) > 0)
    assert score(both, both, [block(20, 30)], difference_threshold=18).iou == 0
