from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from defectory.engine.training.data import BatchPlan, augment, augmentation_of, check_tiles
from defectory.errors import InputError


def test_image_and_masks_move_together(training_tiles: Callable[..., list[Any]]) -> None:
    tile = training_tiles(1)[0]
    mask = tile.instances[0][1]
    # an image that is its own mask must stay its own mask, but for the pixels the outline crosses
    tile = replace(tile, image=np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2))
    moved = augment(tile, augmentation_of(tile, 3, seed=5, flip=True))
    assert moved.image.shape == tile.image.shape
    assert not np.array_equal(moved.instances[0][1], mask)
    own = moved.instances[0][1]
    outline = cv2.morphologyEx(own.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    assert np.array_equal((moved.image[..., 0] >= 128) & ~outline, own & ~outline)
    assert (own & ~outline).any()


def test_first_variant_is_the_tile_and_others_depend_on_content_not_on_id(
    training_tiles: Callable[..., list[Any]],
) -> None:
    tile = training_tiles(1)[0]
    assert np.array_equal(augment(tile, augmentation_of(tile, 0, seed=5, flip=True)).image, tile.image)
    renamed = replace(tile, id="other")
    assert augmentation_of(tile, 2, seed=5, flip=True) == augmentation_of(renamed, 2, seed=5, flip=True)
    assert augmentation_of(tile, 2, seed=5, flip=True) != augmentation_of(tile, 2, seed=6, flip=True)
    assert tile.digest() == renamed.digest()


def test_tone_is_that_of_the_surface_outside_defects_and_padding(training_tiles: Callable[..., list[Any]]) -> None:
    tile = training_tiles(1)[0]
    image = np.full_like(tile.image, 100)
    image[tile.defect] = 0
    image[:, 40:] = 255
    assert replace(tile, image=image, valid_hw=(32, 40)).tone == "muted flat"


def test_digest_changes_with_any_mask_pixel(training_tiles: Callable[..., list[Any]]) -> None:
    tile = training_tiles(1)[0]
    mask = tile.instances[0][1].copy()
    mask[0, 0] ^= True
    assert replace(tile, instances=((tile.instances[0][0], mask),)).digest() != tile.digest()


def test_every_tile_comes_once_before_any_comes_again() -> None:
    plan = BatchPlan(range(7), (), batch_size=3, share=0, num_variants=4, seed=1)
    drawn = [tile for index in range(7) for tile, _ in plan.batch(index)]
    assert Counter(drawn) == dict.fromkeys(range(7), 3)
    assert sorted(drawn[:7]) == list(range(7))


def test_share_of_defect_free_tiles_is_met_over_many_batches() -> None:
    plan = BatchPlan((0, 1), (2, 3, 4), batch_size=4, share=0.15, num_variants=2, seed=1)
    drawn = [tile for index in range(100) for tile, _ in plan.batch(index)]
    assert len(drawn) == 400
    assert sum(tile >= 2 for tile in drawn) == 60


def test_batches_are_a_function_of_seed_and_index() -> None:
    def plan(seed: int = 1) -> BatchPlan:
        return BatchPlan(range(9), range(9, 12), batch_size=4, share=0.3, num_variants=5, seed=seed)

    forward = plan()
    in_order = [forward.batch(index) for index in range(12)]
    assert [plan().batch(index) for index in reversed(range(12))] == in_order[::-1]
    assert [plan(2).batch(index) for index in range(12)] != in_order


def test_tiles_of_two_sizes_or_of_a_size_the_base_cannot_take_are_refused(
    training_tiles: Callable[..., list[Any]],
) -> None:
    tiles = training_tiles(2)
    check_tiles(tiles, multiple_px=16)
    small = replace(tiles[1], image=np.zeros((32, 32, 3), np.uint8), instances=(), class_names=())
    with pytest.raises(InputError, match="tile t1: is 32x32, others are 32x48"):
        check_tiles([tiles[0], small], multiple_px=16)
    with pytest.raises(InputError, match="multiple of 64"):
        check_tiles(tiles, multiple_px=64)
    with pytest.raises(InputError, match="there are none"):
        check_tiles([], multiple_px=8)
