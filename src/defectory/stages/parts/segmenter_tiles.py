"""Loads real tiles for segmenter training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from defectory.artifacts.tiles import Tile, spread
from defectory.errors import StageError
from defectory.runs.store import RunStore, TileFolder

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationTile

MAX_DEFECT_FREE_TILES = 400
"""Most defect-free tiles that a segmenter trains on."""


def segmentation_tiles(tiles: TileFolder, chosen: Sequence[Tile]) -> list[SegmentationTile]:
    """Load tiles for segmenter training, without crowds."""
    from defectory.segmentation.data import SegmentationTile

    return [
        SegmentationTile(
            id=tile.id,
            image=tiles.image(tile),
            instances=tuple((i.category_id, i.rle) for i in tile.instances if not i.is_crowd),
            image_ids=(tile.image_id,),
        )
        for tile in chosen
    ]


def training_tiles(inputs: RunStore, *, stage: str) -> tuple[list[Tile], list[Tile]]:
    """Return the defective train tiles and the defect-free tiles that segmenters train on.

    Raises:
        FirewallError: a tile comes from an image that is not in train or pool, whatever subset it names.
        StageError: the tiles were cut for another split.
    """
    tileset, split = inputs.tiles.tileset, inputs.split
    if tileset.split_digest != split.digest():
        raise StageError(f"{stage}: the tiles were cut for another split; run the stage `tiles` again")
    defective = [t for t in tileset.of("train") if t.instances]
    pool = spread(tileset.of("pool"), MAX_DEFECT_FREE_TILES)
    split.require_training_ids((t.image_id for t in [*defective, *pool]), stage=stage)
    return defective, pool
