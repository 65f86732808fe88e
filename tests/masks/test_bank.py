from __future__ import annotations

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Subset, Tile, TileInstance, TileSet, Tiling
from defectory.errors import FirewallError
from defectory.masks.bank import build_bank, whole_masks
from defectory.rle import area_px, encode

SPLIT = Split(
    dataset_digest="d", seed=0, fraction=1.0, train=(1, 2), val=(3,), test=(4,), pool=(5,), pool_source="images"
)


def instance(category_id: int, area: int, *, crowd: bool = False) -> Instance:
    mask = np.zeros((32, 48), bool)
    mask[4, 2 : 2 + area] = True
    return Instance(category_id=category_id, rle=encode(mask), is_crowd=crowd)


def numbered(instances: tuple[Instance, ...]) -> tuple[TileInstance, ...]:
    return tuple(TileInstance(**dict(instance), number=number) for number, instance in enumerate(instances))


def tile(tile_id: str, image_id: int, subset: Subset, *instances: Instance) -> Tile:
    return Tile(
        id=tile_id,
        file_name=f"{tile_id}.png",
        image_id=image_id,
        subset=subset,
        offset_xy=(0, 0),
        scale=1,
        valid_hw=(32, 48),
        instances=numbered(instances),
    )


def tileset(*tiles: Tile) -> TileSet:
    categories = (Category(id=1, name="crack"), Category(id=2, name="blowhole"))
    return TileSet(
        tiling=Tiling(mode="tile", tile_px=48, scale=1, reason=""), categories=categories, split_digest="s", tiles=tiles
    )


def test_the_bank_holds_the_masks_of_train_alone() -> None:
    tiles = tileset(
        tile("a", 1, "train", instance(1, 10), instance(2, 12)),
        tile("b", 2, "train"),
        tile("c", 3, "val", instance(1, 14)),
        tile("d", 4, "test", instance(1, 16)),
        tile("e", 5, "pool", instance(1, 18)),
    )
    bank = build_bank(tiles, SPLIT)
    assert [(e.tile_id, e.image_id, e.category_id) for e in bank.entries] == [("a", 1, 1), ("a", 1, 2)]
    assert len({e.id for e in bank.entries}) == 2
    assert [e.mask.rle for e in bank.entries] == [i.rle for i in tiles.tiles[0].instances]
    assert bank.split_digest == SPLIT.digest()


@pytest.mark.parametrize("image_id", [3, 4, 99])
def test_a_train_tile_from_an_image_of_val_or_test_is_refused(image_id: int) -> None:
    tiles = tileset(tile("a", 1, "train", instance(1, 10)), tile("b", image_id, "train", instance(1, 10)))
    with pytest.raises(FirewallError, match=rf"mask bank: image ids \[{image_id}\]"):
        build_bank(tiles, SPLIT)


def test_crowds_and_specks_stay_out() -> None:
    tiles = tileset(tile("a", 1, "train", instance(1, 3), instance(2, 9), instance(1, 30, crowd=True)))
    assert [e.category_id for e in build_bank(tiles, SPLIT, min_area_px=9).entries] == [2]


def test_an_instance_on_several_tiles_is_one_mask_and_the_wholest_view_of_it() -> None:
    def seen(area: int, number: int, share: float) -> TileInstance:
        return TileInstance(**dict(instance(1, area)), number=number, visible_share=share)

    def cut(tile_id: str, image_id: int, *instances: TileInstance) -> Tile:
        return tile(tile_id, image_id, "train").model_copy(update={"instances": instances})

    tiles = tileset(
        cut("a", 1, seen(8, 0, 0.4), seen(11, 1, 1.0)),
        cut("b", 1, seen(20, 0, 1.0), seen(5, 1, 0.5)),
        cut("c", 1, seen(20, 0, 1.0)),
        cut("d", 2, seen(9, 0, 0.3)),  # larger than a tile: the part that is seen
    )
    bank = build_bank(tiles, SPLIT)
    assert sorted((e.tile_id, e.image_id, area_px(e.mask.rle)) for e in bank.entries) == [
        ("a", 1, 11),
        ("b", 1, 20),
        ("d", 2, 9),
    ]
    assert len({e.id for e in bank.entries}) == 3


def test_masks_that_a_tile_cut_or_that_fill_one_are_no_whole_masks() -> None:
    whole, cut, long = (
        TileInstance(**dict(instance(1, area)), number=number, visible_share=share)
        for number, (area, share) in enumerate([(10, 1.0), (9, 0.6), (40, 1.0)])
    )
    shown = tile("a", 1, "train").model_copy(update={"instances": (whole, cut, long)})
    bank = build_bank(tileset(shown), SPLIT)
    assert [entry.visible_share for entry in bank.entries] == [1.0, 0.6, 1.0]
    assert [entry.number for entry in whole_masks(bank, most_px=30).entries] == [0]
    elsewhere = shown.model_copy(
        update={"id": "b", "instances": (cut.model_copy(update={"visible_share": 1.0, "rle": instance(1, 15).rle}),)}
    )
    bank = build_bank(tileset(shown, elsewhere), SPLIT)
    assert [(e.number, e.tile_id) for e in whole_masks(bank, most_px=30).entries] == [(0, "a"), (1, "b")]
