"""Pool tiles as jobs see them: augmented, with the drivers taken from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.plan import Job
from defectory.artifacts.tiles import Tile
from defectory.config.project import ProjectConfig
from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver
from defectory.geometry import Augmentation, border_of
from defectory.runs.store import RunStore, TileFolder
from defectory.stages.parts.drawings import Drawings, drawings_of

Image = NDArray[np.uint8]


def augmentation_of(tile: Tile, image: Image, seed: int, *, flip: bool) -> Augmentation:
    """Return the augmentation of a pool tile. Its image decides how it continues beyond its border."""
    return Augmentation.sample(
        seed, tile.valid_hw, strength="offline", flip=flip, border=border_of(image, tile.valid_hw)
    )


class PoolTiles:
    """Pool tiles by id, with a job's augmentation applied.

    Args:
        tiles: of the run.
        drivers: how drivers are extracted.
        flip: augmentations may mirror.
        drawings: source of the drivers' geometry in place of the tiles; None for tiles.
    """

    def __init__(self, tiles: TileFolder, *, drivers: DriverConfig, flip: bool, drawings: Drawings | None) -> None:
        self._folder, self._config, self._flip, self._drawings = tiles, drivers, flip, drawings
        self._tiles = {tile.id: tile for tile in tiles.tileset.of("pool")}
        self._num_classes = len(tiles.tileset.categories)

    def tile(self, job: Job) -> Tile:
        """Return a job's pool tile."""
        return self._tiles[job.tile_id]

    def image(self, tile: Tile, augmentation_seed: int | None) -> Image:
        """Return a pool tile, augmented unless the seed is None, RGB uint8 [H,W,3]."""
        image = self._folder.image(tile)
        if augmentation_seed is None:
            return image
        return augmentation_of(tile, image, augmentation_seed, flip=self._flip).apply_image(image)

    def drivers(self, job: Job) -> tuple[Image, Image, Image]:
        """Return a job's driver, the same without a mask, and the tile they come from.

        Both are filled under the masks, like drivers of annotated images. Otherwise the geometry beside a mask would
        give the defect away.
        """
        tile, instances = self.tile(job), masks_of(job.instances)
        image = self.image(tile, job.augmentation_seed)
        geometry = image if self._drawings is None else self._drawing(self._drawings, tile, job.augmentation_seed)
        blind = [mask for _, mask in instances]
        driver, empty = (
            extract_driver(
                geometry, shown, num_classes=self._num_classes, config=self._config, blind=blind, valid_hw=tile.valid_hw
            )
            for shown in (instances, ())
        )
        return driver, empty, image

    def _drawing(self, drawings: Drawings, tile: Tile, augmentation_seed: int | None) -> Image:
        drawing = drawings.of(tile)
        if augmentation_seed is None:
            return drawing
        photo = self.image(tile, None)
        return augmentation_of(tile, photo, augmentation_seed, flip=self._flip).geometric.apply_image(drawing)


def pool_tiles(inputs: RunStore, config: ProjectConfig) -> PoolTiles:
    """Return the pool tiles of a run."""
    drawings = drawings_of(inputs, config.drivers)
    return PoolTiles(inputs.tiles, drivers=config.drivers, flip=config.augmentation.flip, drawings=drawings)
