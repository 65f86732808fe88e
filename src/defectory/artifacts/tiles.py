"""Tiles (native-resolution squares at a scale) and frames (whole images, padded to a square)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.value import Value

T = TypeVar("T")
Subset = Literal["train", "pool", "val", "test"]


class Tiling(Value):
    """How images become squares of `tile_px`; `scale` is in tile pixels per image pixel."""

    mode: Literal["tile", "frame"]
    tile_px: int
    scale: float
    reason: str


class TileInstance(Instance):
    """An instance, or the part of it that is visible in a tile."""

    number: int
    """Index in its image's list, from 0."""
    visible_share: float = 1.0
    """Share of the instance's area that lies in the tile, above 0 and at most 1."""


class Tile(Value):
    """One square PNG cut from an image; `file_name` is relative to the tile set's folder.

    Image pixel (x, y) lies at tile pixel ((x - offset_xy[0]) * scale, (y - offset_xy[1]) * scale). `valid_hw` is the
    size of the image part in the upper left corner; the rest is padding.
    """

    id: str
    file_name: str
    image_id: int
    subset: Subset
    offset_xy: tuple[float, float]
    scale: float
    valid_hw: tuple[int, int]
    instances: tuple[TileInstance, ...] = ()

    @property
    def is_defect_free(self) -> bool:
        """Return whether the tile has no instances."""
        return not self.instances


class TileSet(Value):
    """All tiles of a run and the tiling they were cut with; training stages use tiles of train and pool only."""

    tiling: Tiling
    categories: tuple[Category, ...]
    split_digest: str
    tiles: tuple[Tile, ...]

    def of(self, subset: Subset) -> tuple[Tile, ...]:
        """Return the tiles of one subset, in order."""
        return tuple(tile for tile in self.tiles if tile.subset == subset)


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` items, evenly over all of them; neighbours in a tile set come from one image."""
    if len(items) <= limit:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, limit).round()]
