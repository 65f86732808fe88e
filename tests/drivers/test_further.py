from __future__ import annotations

import numpy as np

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver
from defectory.drivers.further import FurtherDriver, driver_pair
from defectory.drivers.kinds import grey_of

CONFIG = DriverConfig(grid_px=16)
VALID_HW = (40, 56)


def scene() -> tuple[np.ndarray, np.ndarray]:
    image = np.full((48, 64, 3), 90, np.uint8)
    image[:, 30:] = 200
    image[VALID_HW[0] :], image[:, VALID_HW[1] :] = 0, 0
    mask = np.zeros((48, 64), bool)
    mask[10:20, 8:22] = True
    image[mask] = 20
    return image, mask


def pair(*further: FurtherDriver) -> tuple[np.ndarray, np.ndarray]:
    image, mask = scene()
    return driver_pair(image, [(1, mask)], num_classes=2, config=CONFIG, valid_hw=VALID_HW, further=further)


def test_the_runs_own_driver_comes_first_and_is_what_it_is_alone() -> None:
    image, mask = scene()
    alone = pair()
    for shown, found in zip(([(1, mask)], []), alone, strict=True):
        expected = extract_driver(image, shown, num_classes=2, config=CONFIG, blind=[mask], valid_hw=VALID_HW)
        assert np.array_equal(found, expected)
    several = pair(FurtherDriver(kind=None, masks=True), FurtherDriver(kind="edges", masks=False))
    for one, all_of_them in zip(alone, several, strict=True):
        assert all_of_them.shape == (48, 64, 9)
        assert np.array_equal(all_of_them[..., :3], one)
        assert np.array_equal(all_of_them[..., 3:6], one)


def test_a_published_network_reads_geometry_of_full_size_and_brightness_without_masks() -> None:
    image, mask = scene()
    driver, empty = (of[..., 3:] for of in pair(FurtherDriver(kind="grey", masks=False)))
    assert np.array_equal(driver, empty)
    beyond = np.ones_like(mask)
    beyond[5:25, 3:27] = False
    assert np.array_equal(driver[beyond], np.repeat(grey_of(image)[..., None], 3, axis=2)[beyond])
    assert driver[mask].min() > 80, "the defect is filled"
    edges = pair(FurtherDriver(kind="edges", masks=False))[0][..., 3:]
    assert set(np.unique(edges)) == {0, 255}
    assert 0 < (edges[..., 0] > 0).sum() < 3 * VALID_HW[0], "one line of pixels, not of grid cells"
    colour = pair(FurtherDriver(kind="image", masks=False))[0][..., 3:]
    assert np.array_equal(colour[beyond], image[beyond])


def test_a_network_of_another_run_reads_its_kind_with_masks() -> None:
    image, mask = scene()
    driver, empty = (of[..., 3:] for of in pair(FurtherDriver(kind="edges", masks=True)))
    edges = CONFIG.model_copy(update={"kind": "edges"})
    expected = extract_driver(image, [(1, mask)], num_classes=2, config=edges, valid_hw=VALID_HW)
    assert np.array_equal(driver, expected)
    assert empty.max() <= CONFIG.background_level
