from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.masks.config import MaskConfig
from defectory.masks.perturb import AREA_BOUNDS, perturb
from defectory.rle import box_xyxy

CONFIG = MaskConfig()
STILL = MaskConfig(rotate_degrees=0, scale_range=(1.0, 1.0), shear=0, flip=False, elastic_px=0, thickness_px=0)
Mask = NDArray[np.bool_]


def masks() -> dict[str, Mask]:
    line = np.zeros((40, 64), np.uint8)
    cv2.line(line, (5, 30), (58, 8), 1, 2)
    blob = np.zeros((40, 64), np.uint8)
    cv2.ellipse(blob, (30, 20), (20, 11), 20, 0, 360, 1, -1)
    two = np.zeros((40, 64), bool)
    two[5:15, 5:20] = two[25:33, 40:60] = True
    speck = np.zeros((40, 64), bool)
    speck[20, 30] = True
    return {"line": line > 0, "blob": blob > 0, "two": two, "speck": speck}


@pytest.mark.parametrize("name", masks())
def test_a_perturbed_mask_is_seeded_cropped_and_close_in_area(name: str) -> None:
    mask = masks()[name]
    shapes: set[bytes] = set()
    ratios: list[float] = []
    for seed in range(30):
        changed = perturb(mask, seed=seed, config=CONFIG)
        assert np.array_equal(changed, perturb(mask, seed=seed, config=CONFIG))
        assert changed.dtype == bool
        assert changed.any()
        assert box_xyxy(changed) == (0, 0, changed.shape[1], changed.shape[0])
        shapes.add(changed.tobytes())
        ratios.append(changed.sum() / mask.sum())
    assert min(ratios) >= AREA_BOUNDS[0]
    assert max(ratios) <= AREA_BOUNDS[1]
    if name != "speck":
        assert len(shapes) == 30
        assert 0.8 < np.median(ratios) < 1.25


def test_a_perturbed_mask_has_no_more_pieces_than_before() -> None:
    for name, mask in masks().items():
        before = cv2.connectedComponents(mask.astype(np.uint8))[0]
        for seed in range(30):
            assert cv2.connectedComponents(perturb(mask, seed=seed, config=CONFIG).astype(np.uint8))[0] <= before, name


def test_without_any_perturbation_the_mask_is_its_crop() -> None:
    for mask in masks().values():
        x0, y0, x1, y1 = box_xyxy(mask)
        assert np.array_equal(perturb(mask, seed=3, config=STILL), mask[y0:y1, x0:x1])


def test_scale_and_rotation_do_what_they_say() -> None:
    bar = np.zeros((20, 60), bool)
    bar[8:14, 4:52] = True
    doubled = perturb(bar, seed=0, config=STILL.model_copy(update={"scale_range": (1.4, 1.4)}))
    assert doubled.shape == pytest.approx((6 * 1.4, 48 * 1.4), abs=1)
    heights = [perturb(bar, seed=seed, config=STILL.model_copy(update={"rotate_degrees": 180.0})).shape[0] for seed in range(20)]
    assert max(heights) > 40
    assert min(heights) < 20


def test_thickness_alone_moves_the_outline_by_at_most_its_bound() -> None:
    blob = masks()["blob"]
    config = STILL.model_copy(update={"thickness_px": 2.0})
    areas = [int(perturb(blob, seed=seed, config=config).sum()) for seed in range(20)]
    grown = cv2.dilate(blob.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))).sum()
    shrunk = cv2.erode(blob.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))).sum()
    assert shrunk < min(areas) < blob.sum() < max(areas) < grown


def test_thinning_never_eats_a_thin_crack() -> None:
    line = np.zeros((10, 50), bool)
    line[5, 3:47] = True
    config = STILL.model_copy(update={"thickness_px": 3.0})
    assert all(perturb(line, seed=seed, config=config).shape[1] >= 40 for seed in range(30))
