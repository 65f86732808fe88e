from __future__ import annotations

import sys
import types
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver, geometry_map
from defectory.drivers.kinds import GEOMETRIES, KINDS
from defectory.errors import ConfigError

SIZE_HW = (48, 64)
GRID_HW = (24, 32)
Image = NDArray[np.uint8]


def config_of(kind: str, **changes: Any) -> DriverConfig:
    return DriverConfig(kind=kind, grid_px=GRID_HW[1], **changes)


def part_before_dark() -> Image:
    """A bright disc with a dark hole before a dark background."""
    image = np.full((*SIZE_HW, 3), 12, np.uint8)
    cv2.circle(image, (32, 24), 20, (150, 150, 150), -1)
    cv2.circle(image, (32, 24), 6, (15, 15, 15), -1)
    return image


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("size_hw", [(48, 64), (64, 37)])
def test_every_kind_is_dim_and_masks_are_painted_on_it_at_full_brightness(kind: str, size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
    mask = np.zeros(size_hw, bool)
    mask[10:16, 12:30] = True
    driver = extract_driver(image, [(1, mask)], num_classes=2, config=config_of(kind))
    assert driver.shape == image.shape
    assert driver[~mask].max() <= 50
    assert driver[mask].max() == 255


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_no_kind_tells_whether_its_source_had_the_defect(kind: str) -> None:
    clean = part_before_dark()
    crack = np.zeros(SIZE_HW, np.uint8)
    cv2.line(crack, (18, 16), (28, 12), 1, 2)
    cracked = clean.copy()
    cracked[crack > 0] = 0
    maps = [geometry_map(image, config=config_of(kind), blind=[crack > 0]) for image in (clean, cracked)]
    assert np.array_equal(maps[0], maps[1])


def test_edges_lie_where_the_part_ends_and_nowhere_on_flat_surface() -> None:
    geometry = geometry_map(part_before_dark(), config=config_of("edges"))[..., 0]
    distance = np.abs(np.hypot(*(np.indices(SIZE_HW) - np.array([24, 32])[:, None, None])) - 20)
    hole = np.abs(np.hypot(*(np.indices(SIZE_HW) - np.array([24, 32])[:, None, None])) - 6)
    assert (np.minimum(distance, hole)[geometry > 0] <= 4).all()
    assert (geometry > 0).sum() > 100
    faint = np.full((*SIZE_HW, 3), 100, np.uint8)
    faint[:, 32:] = 110
    assert not geometry_map(faint, config=config_of("edges")).any()
    assert geometry_map(faint, config=config_of("edges", edge_low=10, edge_high=20)).any()


def test_soft_edges_grow_with_the_step_they_show() -> None:
    levels: list[int] = []
    for step in (4, 12, 24):
        image = np.full((*SIZE_HW, 3), 100, np.uint8)
        image[:, 32:] = 100 + step
        levels.append(int(geometry_map(image, config=config_of("soft-edges")).max()))
    assert 0 < levels[0] < levels[1] < levels[2]
    assert levels[1] == pytest.approx(3 * levels[0], abs=3)


def test_superpixels_are_flat_and_keep_the_order_of_tones() -> None:
    image = np.full((*SIZE_HW, 3), 60, np.uint8)
    image[:, 32:] = 180
    geometry = geometry_map(image, config=config_of("superpixels"))[..., 0]
    assert geometry[:, :28].max() < geometry[:, 36:].min()
    assert len(np.unique(geometry)) <= 16


def test_the_silhouette_is_the_part_and_a_surface_is_all_part() -> None:
    image = part_before_dark()
    geometry = geometry_map(image, config=config_of("silhouette"))[..., 0]
    part = image[..., 0] > 100
    away = cv2.erode(part.astype(np.uint8), np.ones((7, 7))) > 0
    outside = cv2.erode((~part).astype(np.uint8), np.ones((7, 7))) > 0
    assert (geometry[away] == 50).all()
    assert (geometry[outside] == 0).all()
    surface = np.random.default_rng(0).integers(90, 170, (*SIZE_HW, 3), dtype=np.uint8)
    assert (geometry_map(surface, config=config_of("silhouette")) == 50).all()


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("plant_drivers")
    monkeypatch.setitem(sys.modules, "plant_drivers", module)
    monkeypatch.setattr(KINDS, "_loaded", {})
    return module


def test_a_plug_in_sees_the_small_image_in_colour_with_its_defects_filled(plug_in: Any) -> None:
    seen: list[Image] = []

    def redness(image: Image, config: DriverConfig) -> Image:
        seen.append(image)
        return image[..., 0].copy()

    plug_in.redness = redness
    image = np.full((*SIZE_HW, 3), (200, 40, 40), np.uint8)
    mask = np.zeros(SIZE_HW, bool)
    mask[20:26, 20:30] = True
    image[mask] = 0
    geometry = geometry_map(image, config=config_of("plant_drivers:redness"), blind=[mask])
    assert seen[0].shape == (*GRID_HW, 3)
    assert seen[0][..., 0].min() > 150, "the black defect is gone"
    assert seen[0][..., 1:].max() < 60
    assert (geometry[:12] == round(200 * 50 / 255)).all()


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (lambda image: image, "shape (24, 32, 3)"),
        (lambda image: image[..., 0] / 255, "float64"),
        (lambda image: None, "NoneType"),
    ],
)
def test_a_plug_in_that_returns_no_geometry_is_named(plug_in: Any, returned: Any, found: str) -> None:
    plug_in.bad = lambda image, config: returned(image)
    with pytest.raises(ConfigError) as caught:
        geometry_map(part_before_dark(), config=config_of("plant_drivers:bad"))
    assert "plant_drivers:bad" in str(caught.value)
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["topologie", "no_such_module:function", "json:no_such_function"])
def test_an_unknown_kind_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        geometry_map(part_before_dark(), config=config_of(name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kind_from_outside_is_used_by_its_name() -> None:
    def redness(image: Image, config: DriverConfig) -> Image:
        return image[..., 0].copy()

    image = np.full((*SIZE_HW, 3), (200, 40, 40), np.uint8)
    with KINDS.registered("redness", redness):
        assert (geometry_map(image, config=config_of("redness")) == round(200 * 50 / 255)).all()
    with pytest.raises(ConfigError, match=r"drivers.kind 'redness': is not known; choose among topology, edges"):
        geometry_map(image, config=config_of("redness"))


def test_the_image_itself_is_a_driver_with_defects_filled_and_masks_pasted_on() -> None:
    from defectory.drivers.extract import extract_driver

    rng = np.random.default_rng(0)
    image = rng.integers(100, 140, (40, 56, 3)).astype(np.uint8)
    mask = np.zeros((40, 56), bool)
    mask[10:20, 12:24] = True
    image[mask] = 5
    config = DriverConfig(kind="image")
    empty = extract_driver(image, (), num_classes=1, config=config, blind=[mask], valid_hw=(40, 50))
    assert empty[mask].min() > 60, "the defect is filled from around it"
    far = np.zeros((40, 56), bool)
    far[28:, :50] = True
    assert np.array_equal(empty[far], image[far])
    assert (empty[:, 50:] == 0).all()
    painted = extract_driver(image, [(1, mask)], num_classes=1, config=config, valid_hw=(40, 50))
    assert len(np.unique(painted[mask], axis=0)) == 1
    assert np.array_equal(painted[~mask], empty[~mask])
