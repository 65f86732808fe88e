from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.curation.fidelity import LOCAL_SHARE, drawn_map, f1_with_tolerance, iou, score, score_map
from defectory.geometry import width_px
from defectory.procedural.borescope import CLASSES, render_pair

SIZE_HW = (96, 128)
THRESHOLD = 18.0
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros(SIZE_HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def surface(seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(90, 160, (*SIZE_HW, 3)).astype(np.uint8)


def drawn(image: Image, mask: Mask, change: int = -40) -> Image:
    result = image.astype(int)
    result[mask] += change
    return np.clip(result, 0, 255).astype(np.uint8)


LABEL = rectangle(40, 30, 70, 60)
NONE = np.zeros(SIZE_HW, bool)


def test_a_difference_that_is_exactly_the_mask_scores_one() -> None:
    for change in (-85, -40, 40, 90):
        fidelity = score(drawn(surface(), LABEL, change), surface(), [LABEL], difference_threshold=THRESHOLD)
        assert fidelity.iou == pytest.approx(1.0)
        assert fidelity.per_instance_iou == pytest.approx((1.0,))
        assert fidelity.outside_fraction == 0.0
        assert fidelity.f1_2px == (None,)


def test_a_change_of_one_colour_counts() -> None:
    tinted = surface().astype(int)
    tinted[LABEL, 0] += 45
    assert score(tinted.astype(np.uint8), surface(), [LABEL], difference_threshold=THRESHOLD).iou == pytest.approx(1.0)


def test_nothing_drawn_scores_zero() -> None:
    fidelity = score(surface(), surface(), [LABEL], difference_threshold=THRESHOLD)
    assert (fidelity.iou, fidelity.per_instance_iou, fidelity.outside_fraction) == (0.0, (0.0,), 0.0)
    faint = score(drawn(surface(), LABEL, -7), surface(), [LABEL], difference_threshold=THRESHOLD)
    assert faint.iou == 0.0


def test_a_defect_drawn_elsewhere_scores_about_zero_and_lies_outside() -> None:
    elsewhere = rectangle(90, 5, 120, 25)
    fidelity = score(drawn(surface(), elsewhere, -90), surface(), [LABEL], difference_threshold=THRESHOLD)
    assert fidelity.iou < 0.02
    assert fidelity.per_instance_iou == (0.0,)
    assert fidelity.outside_fraction > 0.98


def test_half_of_a_mask_scores_a_half() -> None:
    half = rectangle(40, 30, 55, 60)
    fidelity = score(drawn(surface(), half), surface(), [LABEL], difference_threshold=THRESHOLD)
    assert fidelity.iou == pytest.approx(0.5, abs=0.02)
    assert fidelity.outside_fraction == 0.0


@pytest.mark.parametrize("amplitude", [25, 35])
def test_a_smooth_drift_of_tone_is_not_taken_for_a_defect(amplitude: int) -> None:
    ys, xs = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    drift = amplitude * np.cos(xs / SIZE_HW[1] * np.pi) * np.cos(ys / SIZE_HW[0] * np.pi * 0.7)
    shifted = np.clip(drawn(surface(), LABEL) + drift[..., None], 0, 255).astype(np.uint8)
    naive = np.abs(shifted.astype(int) - surface()).max(axis=2) > THRESHOLD
    assert iou(naive, LABEL) < 0.5, "without removing the drift this is no match"
    assert score(shifted, surface(), [LABEL], difference_threshold=THRESHOLD).iou > 0.9
    only_drift = np.clip(surface() + drift[..., None], 0, 255).astype(np.uint8)
    assert score(only_drift, surface(), [LABEL], difference_threshold=THRESHOLD).iou == 0.0
    uniform = np.clip(drawn(surface(), LABEL).astype(int) + amplitude, 0, 255).astype(np.uint8)
    assert score(uniform, surface(), [LABEL], difference_threshold=THRESHOLD).iou > 0.95


def test_a_faint_defect_counts_in_all_of_its_label_down_to_half_the_threshold() -> None:
    half = rectangle(40, 30, 55, 60)
    for change, wanted in ((-16, 0.9), (-11, 0.9), (-6, 0.0)):
        found = score(drawn(surface(), LABEL, change), surface(), [LABEL], difference_threshold=THRESHOLD).iou
        assert found == pytest.approx(wanted, abs=0.1)
    # beside what is strong in the label, what is faint there is not the defect
    both = drawn(drawn(surface(), half, -60), rectangle(55, 30, 70, 60), -11)
    assert score(both, surface(), [LABEL], difference_threshold=THRESHOLD).iou == pytest.approx(0.5, abs=0.03)


def test_the_more_equal_the_halves_the_fainter_a_second_defect_may_be() -> None:
    elsewhere = rectangle(104, 74, 112, 82)
    image = drawn(drawn(surface(), LABEL), elsewhere, -13)
    quiet = score(image, surface(), [LABEL], difference_threshold=THRESHOLD)
    assert quiet.stray_px == pytest.approx(elsewhere.sum(), rel=0.1)
    noise = np.random.default_rng(1).normal(0, 4, (*SIZE_HW, 3))
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    assert score(noisy, surface(), [LABEL], difference_threshold=THRESHOLD).stray_px < 0.2 * elsewhere.sum()
    assert (
        score(drawn(noisy, elsewhere), surface(), [LABEL], difference_threshold=THRESHOLD).stray_px
        > 0.8 * elsewhere.sum()
    )


def test_pixel_noise_and_single_specks_are_not_drawn() -> None:
    rng = np.random.default_rng(1)
    noisy = np.clip(drawn(surface(), LABEL) + rng.normal(0, 6, (*SIZE_HW, 3)), 0, 255).astype(np.uint8)
    noisy[5, 5] = noisy[80, 100] = 255
    fidelity = score(noisy, surface(), [LABEL], difference_threshold=THRESHOLD)
    assert fidelity.iou > 0.97
    assert fidelity.outside_fraction < 0.02


def test_a_mask_that_fills_the_image_is_scored_too() -> None:
    full = np.ones(SIZE_HW, bool)
    assert score(drawn(surface(), full), surface(), [full], difference_threshold=THRESHOLD).iou == pytest.approx(1.0)
    assert score(surface(), surface(), [full], difference_threshold=THRESHOLD).iou == 0.0


def test_each_instance_is_scored_on_its_own() -> None:
    left, right, absent = rectangle(10, 30, 30, 50), rectangle(60, 30, 80, 50), rectangle(100, 60, 120, 80)
    image = drawn(drawn(surface(), left), rectangle(60, 30, 70, 50))
    fidelity = score(image, surface(), [left, right, absent], difference_threshold=THRESHOLD)
    assert fidelity.per_instance_iou == pytest.approx((1.0, 0.5, 0.0), abs=0.03)
    assert fidelity.iou == pytest.approx(600 / 1200, abs=0.02)


def test_a_neighbours_defect_is_not_counted_against_an_instance() -> None:
    left, right = rectangle(30, 30, 50, 60), rectangle(54, 30, 74, 60)
    fidelity = score_map(left | right, [left, right], strays=NONE)
    assert fidelity.per_instance_iou == pytest.approx((1.0, 1.0), abs=0.1)
    assert fidelity.iou == 1.0


def line(width: int, shift: int = 0) -> Mask:
    return rectangle(20, 40 + shift, 110, 40 + shift + width)


@pytest.mark.parametrize(("width", "is_thin"), [(1, True), (3, True), (5, True), (6, False), (9, False)])
def test_instances_under_six_pixels_wide_get_an_f1(width: int, is_thin: bool) -> None:
    assert width_px(line(width)) == pytest.approx(width)
    fidelity = score_map(line(width), [line(width)], strays=NONE)
    assert fidelity.f1_2px == ((pytest.approx(1.0),) if is_thin else (None,))


def test_a_thin_crack_two_pixels_off_is_right_by_f1_and_three_are_not() -> None:
    assert score_map(line(1, shift=2), [line(1)], strays=NONE).f1_2px == (pytest.approx(1.0),)
    assert score_map(line(1, shift=2), [line(1)], strays=NONE).iou == 0.0
    assert score_map(line(1, shift=3), [line(1)], strays=NONE).f1_2px == (0.0,)


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    half = rectangle(20, 40, 65, 41)
    # recall: 45 drawn pixels and 2 more beside their end, of 90; precision is 1
    recall = 47 / 90
    assert f1_with_tolerance(half, line(1)) == pytest.approx(2 * recall / (1 + recall))
    assert f1_with_tolerance(line(1), half) == pytest.approx(2 * recall / (1 + recall))
    assert f1_with_tolerance(np.zeros(SIZE_HW, bool), line(1)) == 0.0
    assert f1_with_tolerance(line(1), np.zeros(SIZE_HW, bool)) == 0.0


def test_iou_of_two_empty_masks_is_zero() -> None:
    assert iou(np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool)) == 0.0


def test_the_map_of_what_was_drawn_is_a_mask_of_the_image() -> None:
    found = drawn_map(drawn(surface(), LABEL), surface(), LABEL, difference_threshold=THRESHOLD)
    assert found.dtype == bool
    assert np.array_equal(found, LABEL)


@pytest.mark.parametrize("light", [0.5, 0.25])
def test_less_light_scores_the_same_until_the_difference_is_noise(light: float) -> None:
    bright = np.full((*SIZE_HW, 3), 160, np.uint8)
    shown, faint = drawn(bright, LABEL, -60), drawn(bright, LABEL, -13)

    def fidelity(image: Image) -> float:
        dimmed = [np.round(half * light).astype(np.uint8) for half in (image, bright)]
        return score(dimmed[0], dimmed[1], [LABEL], difference_threshold=24.0).iou

    assert fidelity(shown) == pytest.approx(1.0)
    assert fidelity(faint) == 0.0


def test_dark_and_faint_defects_of_one_width_count_as_equally_wide() -> None:
    """Blurred alike, a dark line's foot passes a fixed threshold further out than a faint line's."""
    line = np.zeros(LABEL.shape, bool)
    line[20:25, 8:-8] = True

    def width(depth: float, local_share: float) -> float:
        blurred = cv2.GaussianBlur(line.astype(np.float32), (0, 0), 2.0)[..., None] * depth
        image = np.clip(surface().astype(np.float32) - blurred, 0, 255).astype(np.uint8)
        found = drawn_map(image, surface(), line, difference_threshold=THRESHOLD, local_share=local_share)
        return float(found[:, 20:-20].sum(axis=0).mean())

    assert width(110, LOCAL_SHARE) - width(45, LOCAL_SHARE) < 0.5 * (width(110, 0.0) - width(45, 0.0))
    assert width(110, LOCAL_SHARE) < width(110, 0.0) - 1


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_defect_of_a_dark_core_in_a_bright_rim_counts_as_one_that_is_dark_all_over(sign: int) -> None:
    """Between core and rim the difference passes zero, and smoothed it cancels."""
    core = cv2.erode(LABEL.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0

    def fidelity(rim: int) -> float:
        change = (np.where(core, sign * 60.0, 0.0) + np.where(LABEL & ~core, rim, 0.0)).astype(np.float32)
        image = surface() + cv2.GaussianBlur(change, (0, 0), 0.8)[..., None]
        return score(
            np.clip(np.round(image), 0, 255).astype(np.uint8), surface(), [LABEL], difference_threshold=24.0
        ).iou

    assert fidelity(-sign * 60) > fidelity(sign * 60) - 0.07


@pytest.mark.parametrize("change", [-60, 60])
def test_what_lies_between_two_defects_is_of_neither(change: int) -> None:
    both = rectangle(40, 30, 46, 80) | rectangle(48, 30, 54, 80)
    assert np.array_equal(drawn_map(drawn(surface(), both, change), surface(), both, difference_threshold=24.0), both)


@pytest.mark.parametrize("word", CLASSES)
def test_every_class_of_the_demo_scores_high_where_it_is_drawn_as_labelled(word: str) -> None:
    """Rendered with and without its defects: what a perfect generator would score."""
    found: list[float] = []
    for seed in range(40):
        shown, hidden = render_pair(seed, scene_seed=900 + seed, size_hw=(99, 120))
        fidelity = (
            score(shown.image, hidden.image, [mask for _, mask in shown.instances], difference_threshold=24.0)
            if shown.instances
            else None
        )
        found += [
            iou
            for (name, _), iou in zip(shown.instances, fidelity.per_instance_iou if fidelity else (), strict=True)
            if name == word
        ]
    assert len(found) >= 8
    assert np.mean(found) > 0.88
