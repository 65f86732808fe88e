from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver, geometry_map
from defectory.drivers.palette import colour_of, palette
from defectory.geometry import Augmentation

SIZE_HW = (48, 64)
CONFIG = DriverConfig(grid_px=16, threshold_block_px=3, threshold_constant=4.0)
"""Cells of 4x4 pixels, 12x16 of them."""
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros(SIZE_HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def surface(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> Image:
    """Coarse structure, as parts have, under fine grain."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.integers(60, 220, (6, 8, 3)).astype(np.float32), size_hw[::-1], interpolation=cv2.INTER_CUBIC
    )
    return np.clip(coarse + rng.normal(0, 4, (*size_hw, 3)), 0, 255).astype(np.uint8)


def by_hand(image: Image, config: DriverConfig) -> NDArray[np.int64]:
    """Steps 1 to 5 in plain numpy, for sizes that are whole multiples of the grid."""
    cell = max(image.shape[:2]) // config.grid_px
    rows, columns = image.shape[0] // cell, image.shape[1] // cell
    low = np.round(image.astype(float).reshape(rows, cell, columns, cell, 3).mean(axis=(1, 3)))  # 1
    grey = np.round(low @ np.array([0.299, 0.587, 0.114]))  # 2
    half = config.threshold_block_px // 2
    padded = np.pad(grey, half, mode="edge")
    binary = np.zeros((rows, columns), int)
    for y in range(rows):
        for x in range(columns):
            mean = round(padded[y : y + 2 * half + 1, x : x + 2 * half + 1].mean())
            binary[y, x] = 255 if grey[y, x] > mean - config.threshold_constant else 0  # 3
    full = binary.repeat(cell, axis=0).repeat(cell, axis=1)  # 4
    return np.round(full * (config.background_level / 255)).astype(int)  # 5


@pytest.mark.parametrize("seed", range(4))
def test_steps_one_to_five_are_those_of_the_paper(seed: int) -> None:
    found = geometry_map(surface(seed), config=CONFIG).astype(int)
    expected = by_hand(surface(seed), CONFIG)
    assert found.shape == (*SIZE_HW, 3)
    # a cell within rounding of the threshold may fall on either side
    assert (found == expected[..., None]).mean() > 0.98
    assert 0.05 < (expected == 0).mean() < 0.6


def test_a_worked_example() -> None:
    """One dark cell in the middle of a bright, flat surface: it alone is under its local mean by more than 4."""
    image = np.full((*SIZE_HW, 3), 200, np.uint8)
    image[20:24, 32:36] = (90, 90, 90)
    geometry = geometry_map(image, config=CONFIG)
    expected = np.full(SIZE_HW, 50)
    expected[20:24, 32:36] = 0
    assert np.array_equal(geometry[..., 0], expected)
    assert np.array_equal(geometry[..., 0], geometry[..., 2])


def test_the_threshold_constant_decides_what_is_dark() -> None:
    image = np.full((*SIZE_HW, 3), 200, np.uint8)
    image[20:24, 32:36] = 191  # 8 under its local mean
    assert (geometry_map(image, config=CONFIG) == 0).any()
    assert not (geometry_map(image, config=CONFIG.model_copy(update={"threshold_constant": 9.0})) == 0).any()


def test_the_low_resolution_forgets_what_is_finer() -> None:
    image = np.full((*SIZE_HW, 3), 150, np.uint8)
    image[::2, ::2], image[1::2, 1::2] = 170, 130
    assert (geometry_map(image, config=CONFIG) == 50).all()


@pytest.mark.parametrize("level", [50, 20])
def test_background_is_dim_and_masks_are_at_full_brightness(level: int) -> None:
    mask = rectangle(10, 8, 30, 20)
    driver = extract_driver(
        surface(), [(2, mask)], num_classes=3, config=CONFIG.model_copy(update={"background_level": level})
    )
    assert set(np.unique(driver[~mask])) == {0, level}
    assert (driver[mask] == palette(3)[1]).all()
    assert driver[mask].max() == 255


def test_several_classes_are_painted_in_distinct_colours_and_small_ones_on_top() -> None:
    large, small = rectangle(10, 8, 50, 40), rectangle(20, 16, 26, 22)
    for order in ([(1, large), (3, small)], [(3, small), (1, large)]):
        driver = extract_driver(surface(), order, num_classes=3, config=CONFIG)
        assert (driver[small] == palette(3)[2]).all()
        assert (driver[large & ~small] == palette(3)[0]).all()


@pytest.mark.parametrize("num_classes", [1, 2, 3, 5, 7, 8, 12, 20])
def test_class_colours_are_bright_and_far_apart(num_classes: int) -> None:
    colours = palette(num_classes).astype(int)
    assert colours.shape == (num_classes, 3)
    assert (colours.max(axis=1) == 255).all()
    for i in range(num_classes):
        assert colour_of(i + 1, num_classes) == tuple(colours[i])
        for j in range(i):
            assert np.abs(colours[i] - colours[j]).max() >= 40


@pytest.mark.parametrize("size_hw", [(48, 64), (50, 70), (64, 37)])
@pytest.mark.parametrize("seed", range(3))
def test_nobody_can_tell_from_the_driver_whether_its_source_had_the_defect(seed: int, size_hw: tuple[int, int]) -> None:
    crack = np.zeros(size_hw, np.uint8)
    cv2.line(crack, (6, 8), (30, 28), 1, 2)
    mask = crack > 0
    clean = surface(seed, size_hw)
    cracked = clean.copy()
    cracked[mask] = 5
    common = {"num_classes": 2, "config": CONFIG, "blind": [mask]}
    assert np.array_equal(extract_driver(cracked, [(1, mask)], **common), extract_driver(clean, [(1, mask)], **common))
    # the painted mask itself is what is filled where nothing else is said
    assert np.array_equal(
        extract_driver(cracked, [(1, mask)], num_classes=2, config=CONFIG), extract_driver(clean, [(1, mask)], **common)
    )
    seen = CONFIG.model_copy(update={"defect_blind": False})
    assert not np.array_equal(geometry_map(cracked, config=seen), geometry_map(clean, config=seen)), (
        "unfilled, it leaks"
    )


def test_a_hole_beside_a_defect_stays_and_lends_no_dark_to_what_is_filled() -> None:
    size_hw, config = (96, 128), DriverConfig(kind="grey", grid_px=64, background_level=255)
    ys, xs = np.mgrid[: size_hw[0], : size_hw[1]]
    hole, far = np.hypot(ys - 40, xs - 40) < 7, np.hypot(ys - 40, xs - 100) < 7
    clean = np.full((*size_hw, 3), 120, np.uint8)
    clean[hole | far] = 6
    crack = np.zeros(size_hw, bool)
    crack[38:43, 40:75] = True
    crack &= ~hole
    cracked = clean.copy()
    cracked[cv2.dilate(crack.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0] = 10
    for image in (clean, cracked):
        grey = geometry_map(image, config=config, blind=[crack])[..., 0]
        assert (grey[np.hypot(ys - 40, xs - 40) < 5] < 40).all(), "the hole is there to its rim"
        assert (grey[38:43, 52:75] > 110).all(), "no defect, and no shade of the hole, beside it"
    # what is dark along a defect is its own border, however near a hole is
    halo = cv2.dilate(crack.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    cracked[halo & ~hole] = 10
    assert (geometry_map(cracked, config=config, blind=[crack])[38:43, 56:71, 0] > 110).all()


def test_filling_changes_nothing_far_from_the_defect() -> None:
    mask = rectangle(8, 8, 16, 16)
    changed = (geometry_map(surface(), config=CONFIG, blind=[mask]) != geometry_map(surface(), config=CONFIG)).any(
        axis=2
    )
    # the cells it touches, one around, and half a window of the threshold
    near = rectangle(0, 0, 16 + 8, 16 + 8)
    assert not (changed & ~near).any()


def test_a_mask_over_the_whole_image_leaves_the_driver_to_the_image() -> None:
    full = np.ones(SIZE_HW, bool)
    assert np.array_equal(geometry_map(surface(), config=CONFIG, blind=[full]), geometry_map(surface(), config=CONFIG))


def test_padding_stays_black_and_does_not_reach_the_image() -> None:
    padded = np.zeros((64, 64, 3), np.uint8)
    padded[:48] = surface()
    other = padded.copy()
    other[48:] = 255
    driver = extract_driver(padded, [], num_classes=1, config=CONFIG, valid_hw=SIZE_HW)
    assert (driver[48:] == 0).all()
    assert np.array_equal(driver, extract_driver(other, [], num_classes=1, config=CONFIG, valid_hw=SIZE_HW))
    assert np.array_equal(driver[:48], geometry_map(surface(), config=CONFIG))


def test_image_mask_and_driver_are_turned_together() -> None:
    """The driver of a turned image with its turned mask is the turned driver, but for cells at the border of the
    grid.
    """
    yy, xx = np.mgrid[:48, :64]
    image = np.full((*SIZE_HW, 3), 190, np.uint8)
    image[(np.abs(xx - 20) < 4) | (np.abs(yy - 30) < 4)] = 70
    mask = rectangle(36, 8, 56, 20)
    image[mask] = 10
    fine = DriverConfig(grid_px=64, threshold_block_px=15)
    for seed in range(6):
        turned = Augmentation.sample(seed, SIZE_HW, strength="train")
        turned_mask = turned.apply_mask(mask)
        driver = extract_driver(turned.apply_image(image), [(1, turned_mask)], num_classes=1, config=fine)
        expected = turned.apply_image(extract_driver(image, [(1, mask)], num_classes=1, config=fine))
        painted = (driver == palette(1)[0]).all(axis=2)
        assert np.array_equal(painted, turned_mask)
        far = cv2.dilate(turned_mask.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
        inner = np.zeros(SIZE_HW, bool)
        inner[4:-4, 4:-4] = True
        agree = np.abs(driver.astype(int) - expected).max(axis=2)[far & inner] <= 25
        assert agree.mean() > 0.9


def test_an_even_block_and_a_window_larger_than_the_image_are_taken() -> None:
    for block in (4, 301):
        driver = geometry_map(surface(), config=CONFIG.model_copy(update={"threshold_block_px": block}))
        assert set(np.unique(driver)) <= {0, 50}


@pytest.mark.parametrize("grid_px", [32, 64, 128])
def test_a_dark_border_around_a_defect_is_filled_as_well_at_any_grid(grid_px: int) -> None:
    ys, xs = np.mgrid[0:96, 0:128]
    distance = np.hypot(ys - 50, xs - 60)
    image = np.full((96, 128, 3), 120, np.uint8)
    image[distance < 11] = 60
    mask = distance < 8.5
    config = DriverConfig(grid_px=grid_px)
    with_defect = extract_driver(image, [(1, mask)], num_classes=2, config=config)
    without = extract_driver(np.full_like(image, 120), [(1, mask)], num_classes=2, config=config)
    assert np.array_equal(with_defect, without)
    leaky = extract_driver(image, [(1, mask)], num_classes=2, config=config.model_copy(update={"defect_blind": False}))
    assert not np.array_equal(leaky, without)
