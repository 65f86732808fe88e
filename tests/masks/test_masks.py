from __future__ import annotations

import cv2
import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Tile, TileSet, Tiling
from defectory.errors import FirewallError
from defectory.masks.bank import build_bank
from defectory.masks.config import MaskConfig
from defectory.masks.perturb import perturb
from defectory.masks.placement import place
from defectory.rle import encode

SIZE_HW = (48, 64)


def crack() -> np.ndarray:
    canvas = np.zeros(SIZE_HW, np.uint8)
    cv2.polylines(canvas, [np.array([[8, 10], [20, 22], [30, 20], [45, 38]])], False, 1, 3)
    return canvas.astype(bool)


def tile(image_id: int, part: str) -> Tile:
    return Tile(
        id=f"t{image_id}", file_name=f"images/t{image_id}.png", image_id=image_id, part=part, offset_xy=(0.0, 0.0), scale=1.0, valid_hw=SIZE_HW,
        instances=(Instance(category_id=1, rle=encode(crack())),),
    )  # fmt: skip


def bank_of(*tiles: Tile):
    split = Split(dataset_digest="d", seed=0, fraction=1.0, train=(1, 2), val=(3,), test=(4,), pool=(), pool_source="images")
    tiling = Tiling(mode="tile", tile_px=48, scale=1.0, reason="test")
    tileset = TileSet(tiling=tiling, categories=(Category(id=1, name="crack"),), split_digest=split.digest(), tiles=tiles)
    return build_bank(tileset, split, min_area_px=1)


def test_the_bank_holds_train_masks_alone() -> None:
    assert [entry.image_id for entry in bank_of(tile(1, "train"), tile(3, "val"), tile(2, "train")).entries] == [1, 2]


@pytest.mark.parametrize("image_id", [3, 4])
def test_a_val_or_test_image_posing_as_train_is_refused(image_id: int) -> None:
    with pytest.raises(FirewallError, match="mask bank"):
        bank_of(tile(1, "train"), tile(image_id, "train"))


def test_perturbation_is_seeded_and_changes_shape_but_little() -> None:
    mask, config = crack(), MaskConfig()
    made = [perturb(mask, seed=seed, config=config) for seed in range(30)]
    np.testing.assert_array_equal(made[7], perturb(mask, seed=7, config=config))
    for result in made:
        assert 0.4 * mask.sum() <= result.sum() <= 2.5 * mask.sum()
        assert result.any(axis=0).all() or result.any()
        assert cv2.connectedComponents(result.astype(np.uint8), connectivity=8)[0] == 2
    assert len({result.shape for result in made}) > 10


def test_thickness_moves_the_outline_by_no_more_than_it_says() -> None:
    config = MaskConfig(rotate_degrees=0, scale_range=(1, 1), shear=0, flip=False, elastic_px=0, thickness_px=1.0)
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) <= 12
    for seed in range(20):
        radius = np.sqrt(perturb(disc, seed=seed, config=config).sum() / np.pi)
        assert abs(radius - 12) < 1.6


def test_placement_stays_on_allowed_pixels_and_clear_of_others() -> None:
    allowed = np.zeros(SIZE_HW, bool)
    allowed[4:44, 20:60] = True
    taken = np.zeros(SIZE_HW, bool)
    piece = np.ones((8, 12), bool)
    placed = 0
    for seed in range(40):
        result = place(piece, size_hw=SIZE_HW, allowed=allowed, taken=taken, rng=np.random.default_rng(seed))
        if result is None:
            continue
        placed += 1
        assert not (result & ~allowed).any()
        grown = cv2.dilate(result.astype(np.uint8), np.ones((3, 3))) > 0
        assert not (grown & taken).any()
        if taken.sum() < 300:
            taken |= result
    assert placed > 5
    assert place(piece, size_hw=SIZE_HW, allowed=np.zeros(SIZE_HW, bool), taken=taken, rng=np.random.default_rng(0)) is None
