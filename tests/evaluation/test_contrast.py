from __future__ import annotations

import cv2
import numpy as np
import pytest

from defectory.evaluation.contrast import defect_contrast, score_contrast

SIZE_HW = (40, 56)


def tile(
    ground: int, inside: int, box_yxyx: tuple[int, int, int, int] = (10, 12, 18, 30)
) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.full((*SIZE_HW, 3), ground, np.uint8), np.zeros(SIZE_HW, bool)
    y0, x0, y1, x1 = box_yxyx
    mask[y0:y1, x0:x1] = True
    image[mask] = inside
    return image, mask


@pytest.mark.parametrize(
    ("ground", "inside", "expected"), [(100, 40, 0.6), (100, 160, 0.6), (50, 50, 0.0), (80, 20, 0.75)]
)
def test_a_flat_defect_has_the_relative_distance_of_its_level(ground: int, inside: int, expected: float) -> None:
    image, mask = tile(ground, inside)
    assert defect_contrast(image, mask, mask) == pytest.approx(expected)


def test_light_and_dark_parts_do_not_cancel() -> None:
    image, mask = tile(100, 40)
    image[10:14, 12:30] = 160
    assert defect_contrast(image, mask, mask) == pytest.approx(0.6)


def test_half_the_light_is_the_same_contrast() -> None:
    rng = np.random.default_rng(0)
    _, mask = tile(0, 0)
    image = np.repeat(rng.integers(60, 120, (*SIZE_HW, 1)), 3, axis=2).astype(np.uint8) * 2
    assert defect_contrast(image // 2, mask, mask) == pytest.approx(defect_contrast(image, mask, mask))


def test_blur_lowers_contrast_of_a_thin_line_and_another_defect_is_no_surroundings() -> None:
    image, mask = tile(120, 30, (20, 8, 22, 48))
    sharp = defect_contrast(image, mask, mask)
    soft = defect_contrast(cv2.GaussianBlur(image, (0, 0), 2.0), mask, mask)
    assert sharp is not None
    assert soft is not None
    assert soft < 0.7 * sharp
    other = np.zeros_like(mask)
    other[24:27, 8:48] = True
    image[other] = 250
    assert defect_contrast(image, mask, mask | other) == pytest.approx(sharp)
    assert defect_contrast(image, mask, mask) != pytest.approx(sharp, rel=0.05)


def test_too_little_to_measure_is_none() -> None:
    image, _ = tile(100, 40)
    small, everything = np.zeros(SIZE_HW, bool), np.ones(SIZE_HW, bool)
    small[3:5, 3:5] = True
    assert defect_contrast(image, small, small) is None
    assert defect_contrast(image, everything, everything) is None


def test_classes_are_compared_by_the_median_where_both_sides_have_them() -> None:
    def defect(name: str, inside: int) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
        image, mask = tile(100, inside)
        return image, [(name, mask)]

    real = [defect("pit", 40), defect("pit", 50), defect("pit", 10), defect("burn", 70)]
    made = [defect("pit", 70), defect("scratch", 20), (np.zeros((*SIZE_HW, 3), np.uint8), [])]
    scores = score_contrast(made, real)
    assert list(scores) == ["pit"]
    assert scores["pit"].real == pytest.approx(0.6)
    assert scores["pit"].synthetic == pytest.approx(0.3)
    assert (scores["pit"].num_synthetic, scores["pit"].num_real) == (1, 3)
