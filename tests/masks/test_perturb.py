from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.masks import perturb as perturb_module
from defectory.masks.config import MaskConfig
from defectory.masks.perturb import AREA_BOUNDS, SHAPE_SETTINGS, mean_width_px, perturb
from defectory.rle import box_xyxy

CONFIG = MaskConfig()
STILL = MaskConfig(rotate_degrees=0, scale_range=(1.0, 1.0), shear=0, flip=False, elastic_px=0, thickness_share=0)
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
    longer = perturb(bar, seed=0, config=STILL.model_copy(update={"scale_range": (1.4, 1.4)}))
    assert longer.shape == pytest.approx((6, 48 * 1.4), abs=3)
    block = np.zeros((40, 60), bool)
    block[10:24, 20:40] = True
    larger = perturb(block, seed=0, config=STILL.model_copy(update={"scale_range": (1.4, 1.4)}))
    assert larger.shape == pytest.approx((14 * 1.4, 20 * 1.4), abs=1)
    heights = [
        perturb(bar, seed=seed, config=STILL.model_copy(update={"rotate_degrees": 180.0})).shape[0]
        for seed in range(20)
    ]
    assert max(heights) > 40
    assert min(heights) < 20


def strip(width: int) -> Mask:
    mask = np.zeros((60, 80), np.uint8)
    cv2.line(mask, (8, 45), (70, 15), 1, width)
    return mask > 0


@pytest.mark.parametrize("width", [3, 5, 8])
def test_a_long_defect_keeps_its_width_however_it_is_scaled(width: int) -> None:
    mask = strip(width)
    config = STILL.model_copy(update={"scale_range": (0.7, 1.4), "rotate_degrees": 180.0, "shear": 0.1})
    changed = [perturb(mask, seed=seed, config=config) for seed in range(40)]
    widths = np.array([mean_width_px(c) for c in changed]) / mean_width_px(mask)
    assert np.abs(widths - 1).max() < 0.15
    assert np.std([c.sum() for c in changed]) > 0.1 * mask.sum()


def test_a_perturbed_defect_fills_no_more_of_its_box_than_before() -> None:
    for mask in (strip(4), masks()["line"], masks()["two"]):
        for seed in range(20):
            changed = perturb(mask, seed=seed, config=CONFIG)
            hull = cv2.convexHull(np.argwhere(changed).astype(np.int32))
            before = cv2.convexHull(np.argwhere(mask).astype(np.int32))
            assert cv2.contourArea(hull) < 2.2 * cv2.contourArea(before) + 150


def test_a_blob_is_scaled_as_a_whole() -> None:
    blob = masks()["blob"]
    config = STILL.model_copy(update={"scale_range": (1.2, 1.2)})
    assert mean_width_px(perturb(blob, seed=1, config=config)) == pytest.approx(1.2 * mean_width_px(blob), rel=0.05)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_width_alone_changes_by_at_most_its_share(share: float) -> None:
    for mask in (masks()["blob"], strip(6)):
        config = STILL.model_copy(update={"thickness_share": share})
        before = mean_width_px(mask)
        widths = [mean_width_px(perturb(mask, seed=seed, config=config)) for seed in range(40)]
        # whole pixels can follow to half a pixel
        assert before * np.exp(-share) - 0.6 < min(widths) < before < max(widths) < before * np.exp(share) + 0.6
        assert max(widths) - min(widths) > share * before


def test_the_width_of_strips_and_discs_is_known() -> None:
    bar = np.zeros((30, 200), bool)
    bar[10:18, 5:195] = True
    assert mean_width_px(bar) == pytest.approx(8, rel=0.05)
    disc = np.hypot(*np.mgrid[-40:41, -40:41]) <= 30
    assert mean_width_px(disc) == pytest.approx(4 * 30 / 3, rel=0.03)
    assert mean_width_px(np.zeros((4, 5), bool)) == 0


def test_thinning_never_eats_a_thin_crack() -> None:
    line = np.zeros((10, 50), bool)
    line[5, 3:47] = True
    config = STILL.model_copy(update={"thickness_share": 0.6})
    assert all(perturb(line, seed=seed, config=config).shape[1] >= 40 for seed in range(30))


def test_shapes_depend_on_the_named_settings_alone() -> None:
    mask, config = np.zeros((40, 60), bool), MaskConfig()
    mask[10:14, 5:50] = True
    named: Any = SimpleNamespace(**{name: getattr(config, name) for name in SHAPE_SETTINGS})
    for seed in range(8):
        # any other setting that is read is missing here
        assert np.array_equal(perturb(mask, seed=seed, config=named), perturb(mask, seed=seed, config=config))


def test_the_elastic_map_of_a_large_mask_is_as_smooth_as_that_of_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The correlation at a distance d is that of white noise blurred by a Gaussian, exp(-d^2 / (4 sigma^2))."""
    size_hw, sigma, distance = (120, 200), 10.0, 10
    for largest in (1024, 80):
        monkeypatch.setattr(perturb_module, "MAX_FIELD_PX", largest)
        pairs: list[NDArray[np.float32]] = []
        for seed in range(40):
            field = perturb_module._smooth_field(np.random.default_rng(seed), size_hw, sigma)
            assert field.shape == size_hw
            inner = field[30:-30, 30:-30]
            pairs.append(np.stack([inner[:, :-distance].ravel(), inner[:, distance:].ravel()]))
        correlation = float(np.corrcoef(np.concatenate(pairs, axis=1))[0, 1])
        assert correlation == pytest.approx(np.exp(-(distance**2) / (4 * sigma**2)), abs=0.06), largest


def test_a_defect_as_long_as_a_photograph_is_perturbed_on_a_grid_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides: list[int] = []
    blur = cv2.GaussianBlur

    def watched(field: Any, *args: Any, **settings: Any) -> Any:
        sides.append(max(field.shape))
        return blur(field, *args, **settings)

    monkeypatch.setattr(perturb_module.cv2, "GaussianBlur", watched)
    monkeypatch.setattr(perturb_module, "MAX_FIELD_PX", 128)
    long = np.zeros((220, 90), np.uint8)
    cv2.line(long, (5, 5), (80, 210), 1, 3)
    ratios = [perturb(long > 0, seed=seed, config=CONFIG).sum() / (long > 0).sum() for seed in range(12)]
    assert max(sides) == 128
    assert 0.8 < np.median(ratios) < 1.25
    assert len(set(ratios)) > 1
