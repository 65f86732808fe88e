from __future__ import annotations

import cv2
import numpy as np

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver, geometry_map
from defectory.drivers.leakage import auc, leakage
from defectory.drivers.palette import palette

SIZE_HW = (48, 80)


def photo(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.integers(90, 160, (6, 10)).astype(np.float32)
    return np.clip(cv2.resize(low, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)[..., None].repeat(3, axis=2), 0, 255).astype(np.uint8)


def test_steps_one_to_five_are_the_papers() -> None:
    config = DriverConfig(grid_px=20, threshold_block_px=3, threshold_constant=2.0, background_level=50)
    image = photo()
    low = cv2.resize(image, (20, 12), interpolation=cv2.INTER_AREA)
    grey = np.round(low.astype(np.float64) @ [0.299, 0.587, 0.114])
    padded = np.pad(grey, 1, mode="edge")
    mean = np.round(sum(padded[dy : dy + 12, dx : dx + 20] for dy in range(3) for dx in range(3)) / 9)
    binary = grey > mean - 2
    expected = np.kron(binary, np.ones((4, 4))) * 50
    found = geometry_map(image, config=config)
    assert found.shape == (*SIZE_HW, 3)
    assert (found[..., 0] == expected).mean() > 0.99
    assert set(np.unique(found)) <= {0, 50}


def test_masks_are_painted_bright_in_a_colour_per_class_on_dim_geometry() -> None:
    first, second = np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool)
    first[5:15, 10:30], second[25:40, 50:70] = True, True
    driver = extract_driver(photo(), [(1, first), (3, second)], num_classes=3, config=DriverConfig())
    colours = palette(3)
    assert (driver[first] == colours[0]).all()
    assert (driver[second] == colours[2]).all()
    assert driver[~(first | second)].max() <= 50
    assert colours.max(axis=1).min() == 255


def test_colours_of_many_classes_are_distinct() -> None:
    colours = palette(12).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    np.fill_diagonal(distances, 999)
    assert distances.min() > 40


def test_a_driver_does_not_tell_whether_its_image_had_the_defect() -> None:
    clean = photo(3)
    mask = np.zeros(SIZE_HW, bool)
    mask[20:26, 15:60] = True
    defective = clean.copy()
    defective[mask] = 10
    kept = DriverConfig(grid_px=20)
    np.testing.assert_array_equal(
        extract_driver(clean, [(1, mask)], num_classes=1, config=kept), extract_driver(defective, [(1, mask)], num_classes=1, config=kept)
    )
    open_config = DriverConfig(grid_px=20, defect_blind=False)
    outside = ~cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
    a, b = (extract_driver(i, [(1, mask)], num_classes=1, config=open_config)[outside] for i in (clean, defective))
    assert (a != b).any()


def test_padding_stays_empty() -> None:
    driver = extract_driver(photo(), [], num_classes=1, config=DriverConfig(), valid_hw=(40, 80))
    assert not driver[40:].any()


def drivers_with_masks(count: int, seed: int, *, leak: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    result: list[tuple[np.ndarray, np.ndarray]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        geometry = np.where(rng.random((12, 20)) < 0.2, 0, 50).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        mask = np.zeros(SIZE_HW, bool)
        y, x = rng.integers(6, 30), rng.integers(6, 50)
        mask[y : y + 6, x : x + 20] = True
        if leak:
            geometry[y - 4 : y + 10, x - 4 : x + 24] = 0
        result.append((geometry, mask))
    return result


def test_a_planted_leak_is_found_and_none_is_not() -> None:
    free = drivers_with_masks(60, 1, leak=False)
    leaking = leakage(drivers_with_masks(60, 0, leak=True), free, seed=0)
    tight = leakage(drivers_with_masks(60, 0, leak=False), free, seed=0)
    assert leaking is not None
    assert tight is not None
    assert leaking.auc > 0.95
    assert tight.interval[0] < 0.6
    assert leakage(free[:4], free, seed=0) is None


def test_auc_counts_pairs_in_order_ties_half() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 1, 0, 1])
    assert auc(scores, labels) == (1 + 0.5 + 2) / 4
