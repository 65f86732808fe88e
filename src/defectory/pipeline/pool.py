"""Pool tiles as jobs see them: augmented, with the drivers taken from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import Job
from defectory.artifacts.tiles import Tile, TileSet
from defectory.drivers.extract import extract_driver
from defectory.geometry import Augmentation, border_of
from defectory.imageio import load_rgb
from defectory.pipeline.drawings import Drawings, drawings_of
from defectory.pipeline.stage import Project
from defectory.pipeline.values import masks_of

Image = NDArray[np.uint8]


def augmentation_of(tile: Tile, image: Image, seed: int, *, flip: bool) -> Augmentation:
    """Give the augmentation of a pool tile, whose image decides what lies beyond its border."""
    return Augmentation.sample(
        seed, tile.valid_hw, strength="offline", flip=flip, border=border_of(image, tile.valid_hw)
    )


class PoolTiles:
    """Pool tiles by id, with a job's augmentation applied."""

    def __init__(self, project: Project, tileset: TileSet) -> None:
        self._folder = project.path("tiles")
        self._tiles = {tile.id: tile for tile in tileset.of("pool")}
        self.num_classes = len(tileset.categories)
        self._config = project.config.drivers
        self._flip = project.config.condition.training.flip
        self._drawings = drawings_of(project)

    def tile(self, job: Job) -> Tile:
        """Give a job's pool tile."""
        return self._tiles[job.tile_id]

    def image(self, tile: Tile, augmentation_seed: int | None) -> Image:
        """Give a pool tile, augmented unless the seed is None, RGB uint8 [H,W,3]."""
        image = load_rgb(self._folder / tile.file_name)
        if augmentation_seed is None:
            return image
        return augmentation_of(tile, image, augmentation_seed, flip=self._flip).apply_image(image)

    def drivers(self, job: Job) -> tuple[Image, Image, Image]:
        """Give a job's driver, the same without mask, and the tile they come from.

        Both are filled under the masks as drivers of annotated images are: else the geometry beside a mask would tell
        them apart.
        """
        tile, instances = self.tile(job), masks_of(job.instances)
        image = self.image(tile, job.augmentation_seed)
        geometry = image if self._drawings is None else self._drawing(self._drawings, tile, job.augmentation_seed)
        make: Any = extract_driver
        common = {
            "num_classes": self.num_classes,
            "config": self._config,
            "blind": [mask for _, mask in instances],
            "valid_hw": tile.valid_hw,
        }
        return make(geometry, instances, **common), make(geometry, (), **common), image

    def _drawing(self, drawings: Drawings, tile: Tile, augmentation_seed: int | None) -> Image:
        drawing = drawings.of(tile)
        if augmentation_seed is None:
            return drawing
        photo = self.image(tile, None)
        return augmentation_of(tile, photo, augmentation_seed, flip=self._flip).geometric.apply_image(drawing)
