"""Pool tiles as jobs see them: augmented, or squares elsewhere on their images, with the drivers taken from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.plan import Job
from defectory.artifacts.tiles import Tile
from defectory.config.project import ProjectConfig
from defectory.dataset.tile_plan import scaled_size_hw
from defectory.drivers.config import DriverConfig
from defectory.drivers.further import FurtherDriver, driver_pair
from defectory.geometry import Augmentation, border_of
from defectory.masks.placement import Sides
from defectory.runs.store import RunStore
from defectory.runs.stored import TileFolder
from defectory.stages.parts.drawings import Drawings, drawings_of

Image = NDArray[np.uint8]
Corner = tuple[int, int]
KEPT_TILES = 64
"""Tiles kept in memory, from which squares are put together."""
PLACES_TRIED = 8


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
        sizes_hw: of the images at the tiles' scale, by image id.
        further: what networks read that act beside the run's own.
    """

    def __init__(
        self,
        tiles: TileFolder,
        *,
        drivers: DriverConfig,
        flip: bool,
        drawings: Drawings | None,
        sizes_hw: Mapping[int, tuple[int, int]],
        further: Sequence[FurtherDriver] = (),
    ) -> None:
        self._folder, self._config, self._flip, self._drawings = tiles, drivers, flip, drawings
        self._further = tuple(further)
        self._tiles = {tile.id: tile for tile in tiles.tileset.of("pool")}
        self._num_classes, self._sizes_hw = len(tiles.tileset.categories), sizes_hw
        self._of_image: dict[int, list[Tile]] = {}
        for tile in self._tiles.values():
            self._of_image.setdefault(tile.image_id, []).append(tile)
        self._file = lru_cache(maxsize=KEPT_TILES)(self._load)

    def tile(self, job: Job) -> Tile:
        """Return a job's pool tile, at the job's place on its image."""
        tile = self._tiles[job.tile_id]
        return tile if job.offset_xy is None else tile.model_copy(update={"offset_xy": job.offset_xy})

    def square_near(self, tile: Tile, rng: np.random.Generator) -> Tile:
        """Return a tile moved to a random place at most half a side away, on ground that pool tiles of its image show.

        It stays at its own place if no other is found.
        """
        own, limits = corner_of(tile), self._sizes_hw[tile.image_id]
        for _ in range(PLACES_TRIED):
            corner = [
                int(np.clip(at + rng.integers(-(side // 2), side // 2 + 1), 0, limit - side))
                for at, side, limit in zip(own, tile.valid_hw, limits, strict=True)
            ]
            moved = tile.model_copy(update={"offset_xy": (corner[1] / tile.scale, corner[0] / tile.scale)})
            if self._pieces(moved) is not None:
                return moved
        return tile

    def ends(self, tile: Tile) -> Sides:
        """Return at which sides of a tile its image ends."""
        (top, left), (height, width) = corner_of(tile), self._sizes_hw[tile.image_id]
        bottom, right = top + tile.valid_hw[0], left + tile.valid_hw[1]
        return Sides(top=top <= 0, left=left <= 0, bottom=bottom >= height, right=right >= width)

    def _load(self, tile_id: str) -> Image:
        return self._folder.image(self._tiles[tile_id])

    def _pieces(self, square: Tile) -> list[tuple[Tile, Corner]] | None:
        """Return tiles that show a square, and the square's corner in each; None if they leave a gap."""
        top, left = corner_of(square)
        shown = np.zeros(square.valid_hw, bool)
        pieces: list[tuple[Tile, Corner]] = []
        for tile in self._of_image[square.image_id]:
            y, x = (at - start for at, start in zip((top, left), corner_of(tile), strict=True))
            part = shown[max(0, -y) : max(0, tile.valid_hw[0] - y), max(0, -x) : max(0, tile.valid_hw[1] - x)]
            if part.size and not part.all():
                part[:] = True
                pieces.append((tile, (y, x)))
        return pieces if shown.all() else None

    def _square(self, square: Tile) -> Image:
        """Put a square together from pool tiles of its image; padding is as on its own tile."""
        result = self._file(square.id).copy()
        (height, width), pieces = square.valid_hw, self._pieces(square)
        assert pieces is not None, f"pool tiles do not show the square of {square.id} at {square.offset_xy}"
        for tile, (y, x) in pieces:
            below, right = min(height, tile.valid_hw[0] - y), min(width, tile.valid_hw[1] - x)
            part = self._file(tile.id)[max(0, y) : y + below, max(0, x) : x + right]
            result[max(0, -y) : below, max(0, -x) : right] = part
        if (height, width) != result.shape[:2]:
            # as `cut_window` pads
            result = np.pad(
                result[:height, :width],
                ((0, result.shape[0] - height), (0, result.shape[1] - width), (0, 0)),
                mode="edge",
            )
        return result

    def image(self, tile: Tile, augmentation_seed: int | None) -> Image:
        """Return a pool tile, augmented unless the seed is None, RGB uint8 [H,W,3]."""
        is_moved = tile.offset_xy != self._tiles[tile.id].offset_xy
        image = self._square(tile) if is_moved else self._folder.image(tile)
        if augmentation_seed is None:
            return image
        return augmentation_of(tile, image, augmentation_seed, flip=self._flip).apply_image(image)

    def drivers(self, job: Job) -> tuple[Image, Image, Image]:
        """Return a job's driver, the same without a mask, and the tile they come from.

        Drivers have three channels for each network, the run's own first.
        """
        tile, instances = self.tile(job), masks_of(job.instances)
        image = self.image(tile, job.augmentation_seed)
        geometry = image if self._drawings is None else self._drawing(self._drawings, tile, job.augmentation_seed)
        driver, empty = driver_pair(
            geometry,
            instances,
            num_classes=self._num_classes,
            config=self._config,
            valid_hw=tile.valid_hw,
            further=self._further,
        )
        return driver, empty, image

    def _drawing(self, drawings: Drawings, tile: Tile, augmentation_seed: int | None) -> Image:
        drawing = drawings.of(tile)
        if augmentation_seed is None:
            return drawing
        photo = self.image(tile, None)
        return augmentation_of(tile, photo, augmentation_seed, flip=self._flip).geometric.apply_image(drawing)


def corner_of(tile: Tile) -> Corner:
    """Return the upper left corner (y, x) of a tile, in pixels of its image at the tile's scale."""
    return round(tile.offset_xy[1] * tile.scale), round(tile.offset_xy[0] * tile.scale)


def pool_tiles(inputs: RunStore, config: ProjectConfig, *, further: Sequence[FurtherDriver] = ()) -> PoolTiles:
    """Return the pool tiles of a run.

    Args:
        inputs: of the run.
        config: of the project.
        further: what networks read that act beside the run's own; needed for drivers that are drawn from.
    """
    drawings, dataset, tileset = drawings_of(inputs, config.drivers), inputs.data.dataset, inputs.tiles.tileset
    image_ids = {tile.image_id for tile in tileset.of("pool")}
    return PoolTiles(
        inputs.tiles,
        drivers=config.drivers,
        flip=config.augmentation.flip,
        drawings=drawings,
        sizes_hw={i: scaled_size_hw(dataset.image(i), tileset.tiling) for i in image_ids},
        further=further,
    )
