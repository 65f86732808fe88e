"""Tiles (native-detail squares at a scale) and frames (whole images, padded to a square)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.value import Value

T = TypeVar("T")
Part = Literal["train", "pool", "val", "test"]


class Tiling(Value):
    """How images become squares of `tile_px`: `scale` is tile pixels per image pixel."""

    mode: Literal["tile", "frame"]
    tile_px: int
    scale: float
    reason: str


class TileInstance(Instance):
    """An instance, or the part of it that a tile's border leaves."""

    number: int
    """Its place in its image's list, from 0."""
    visible_share: float = 1.0
    """Share of its area that lies in the tile, above 0 and at most 1."""


class Tile(Value):
    """One square PNG (`file_name`, relative to the tile set's folder) cut from an image.

    Image pixel (x, y) lies at tile pixel ((x - offset_xy[0]) * scale, (y - offset_xy[1]) * scale).
    `valid_hw` is the part of the tile, from its upper left corner, that shows image; the rest is padding.
    """

    id: str
    file_name: str
    image_id: int
    part: Part
    offset_xy: tuple[float, float]
    scale: float
    valid_hw: tuple[int, int]
    instances: tuple[TileInstance, ...] = ()

    @property
    def is_defect_free(self) -> bool:
        """Tell whether the tile carries no instance."""
        return not self.instances


class TileSet(Value):
    """All tiles of a run, with the tiling they were cut with; sources are train and pool for every training stage."""

    tiling: Tiling
    categories: tuple[Category, ...]
    split_digest: str
    tiles: tuple[Tile, ...]

    def of(self, part: Part) -> tuple[Tile, ...]:
        """Give the tiles of one part, in order."""
        return tuple(tile for tile in self.tiles if tile.part == part)


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` items, evenly over all of them; neighbours in a tile set come from one image."""
    if len(items) <= limit:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, limit).round()]
