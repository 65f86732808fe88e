"""The choice of squares to cut from each image, made from sizes and instances before any image is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Subset, Tiling
from defectory.dataset.config import TilingConfig
from defectory.geometry import resize_crop
from defectory.rle import Rle, decode_crop

Mask = NDArray[np.bool_]
Corner = tuple[int, int]
"""Upper left corner (y, x) of a tile, in pixels of the scaled image."""
_MARGIN_PX = 4
"""Distance between a defect and the border of a tile around it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """A mask cropped to its bounding box: bool [h,w], with its first pixel at `corner_yx`."""

    mask: Mask
    corner_yx: Corner

    def within(self, corner: Corner, side: int) -> tuple[Mask, Corner] | None:
        """Return the part of the mask inside a square and its position there; None if the boxes do not overlap."""
        (y, x), (height, width) = self.corner_yx, self.mask.shape
        top, left = max(corner[0], y), max(corner[1], x)
        bottom, right = min(corner[0] + side, y + height), min(corner[1] + side, x + width)
        if top >= bottom or left >= right:
            return None
        return self.mask[top - y : bottom - y, left - x : right - x], (top - corner[0], left - corner[1])


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The tiles to cut from one image for one subset.

    `corners` maps tile numbers to corners; tiles were numbered before any was left out.
    """

    subset: Subset
    record: ImageRecord
    corners: dict[int, Corner]


def patches_of(record: ImageRecord, size_hw: tuple[int, int]) -> Iterator[Patch]:
    """Yield the instances' masks, scaled to an image of `size_hw` and cropped to their boxes, one at a time."""
    for instance in record.instances:
        yield patch_of(instance.rle, size_hw)


def patch_of(rle: Rle, size_hw: tuple[int, int]) -> Patch:
    """Decode one mask, scaled to an image of `size_hw` and cropped to its box."""
    crop, (x, y) = decode_crop(rle)
    mask, corner_yx = resize_crop(crop, (y, x), rle.size_hw, size_hw)
    return Patch(mask=mask, corner_yx=corner_yx)


def scaled_size_hw(record: ImageRecord, tiling: Tiling) -> tuple[int, int]:
    """Return height and width in pixels of an image at the scale of its tiles or of its frame."""
    height, width = record.size_hw
    scale = min(tiling.scale, tiling.tile_px / max(height, width)) if tiling.mode == "frame" else tiling.scale
    return max(1, round(height * scale)), max(1, round(width * scale))


def plan_cuts(
    dataset: Dataset, split: Split, tiling: Tiling, *, subsets: Sequence[Subset], config: TilingConfig, seed: int
) -> list[Cut]:
    """Return the cuts in the order of the tile set; the pool has at most `config.max_pool_tiles`, sampled evenly.

    Args:
        dataset: images and instances.
        split: subset of each image.
        tiling: mode, tile side and scale.
        subsets: subsets to cut.
        config: limits.
        seed: seed of the tile positions.
    """
    ids = {"train": split.train, "pool": split.pool, "val": split.val, "test": split.test}
    cuts: list[Cut] = []
    for subset in subsets:
        sources = [*ids[subset], *(split.train if subset == "pool" and split.pool_source == "train_crops" else ())]
        cuts += [_cut(dataset.image(image_id), subset, tiling, config, seed) for image_id in sources]
    return _limited(cuts, config.max_pool_tiles)


def _cut(record: ImageRecord, subset: Subset, tiling: Tiling, config: TilingConfig, seed: int) -> Cut:
    if tiling.mode == "frame":
        return Cut(subset=subset, record=record, corners={} if subset == "pool" and record.instances else {0: (0, 0)})
    side, size_hw = tiling.tile_px, scaled_size_hw(record, tiling)
    rng = np.random.default_rng([3, seed, record.id])
    corners: list[Corner] = []
    wants_around, wants_grid = subset != "pool", not record.instances or subset in ("pool", "test", "val")
    grid = _Grid(size_hw, side)
    for patch in patches_of(record, size_hw):
        if wants_around and patch.mask.size:
            corners += [corner_around(patch, size_hw, side, rng) for _ in range(config.tiles_per_instance)]
        if wants_grid:
            grid.mark(patch)
    if wants_grid:
        corners += grid.free()
    return Cut(subset=subset, record=record, corners=dict(enumerate(dict.fromkeys(corners))))


def corner_around(patch: Patch, size_hw: tuple[int, int], side: int, rng: np.random.Generator) -> Corner:
    """Return the corner of a tile that contains a defect at a random position, or a random part of a large defect."""
    ys, xs = np.nonzero(patch.mask)
    pick = int(rng.integers(len(ys)))
    corner: list[int] = []
    for low, high, at, start, limit in (
        (ys.min(), ys.max() + 1, ys[pick], patch.corner_yx[0], size_hw[0]),
        (xs.min(), xs.max() + 1, xs[pick], patch.corner_yx[1], size_hw[1]),
    ):
        low, high, at = int(low) + start, int(high) + start, int(at) + start
        if high - low + 2 * _MARGIN_PX <= side:
            first = int(rng.integers(high + _MARGIN_PX - side, low - _MARGIN_PX + 1))
        else:
            first = at - side // 2 + int(rng.integers(-side // 8, side // 8 + 1))
        corner.append(min(max(first, 0), max(0, limit - side)))
    return corner[0], corner[1]


class _Grid:
    """The smallest grid of squares that covers an image, and which of them a defect touches.

    The squares are evenly spaced and include the image borders. Tiles from the middle alone would under-represent what
    lies at the borders, such as a dark vignette, compared with tiles around defects.
    """

    def __init__(self, size_hw: tuple[int, int], side: int) -> None:
        self._side = side
        self._ys, self._xs = _starts(size_hw[0], side), _starts(size_hw[1], side)
        self._touched = np.zeros((len(self._ys), len(self._xs)), bool)

    def mark(self, patch: Patch) -> None:
        """Mark the squares that a mask touches."""
        (y, x), (height, width) = patch.corner_yx, patch.mask.shape
        columns = [c for c, left in enumerate(self._xs) if x - self._side < left < x + width]
        for row, top in enumerate(self._ys):
            if y - self._side < top < y + height:
                for column in columns:
                    seen = None if self._touched[row, column] else patch.within((top, self._xs[column]), self._side)
                    if seen is not None and seen[0].any():
                        self._touched[row, column] = True

    def free(self) -> list[Corner]:
        """Return the corners of the squares that no mask touches, row by row."""
        return [(self._ys[row], self._xs[column]) for row, column in np.argwhere(~self._touched).tolist()]


def _starts(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return [round(i * (length - side) / (count - 1)) for i in range(count)] if count > 1 else [0]


def _limited(cuts: list[Cut], limit: int) -> list[Cut]:
    """Keep at most `limit` pool tiles, sampled evenly."""
    total = sum(len(cut.corners) for cut in cuts if cut.subset == "pool")
    if total <= limit:
        return cuts
    keep = set(np.linspace(0, total - 1, limit).round().astype(int).tolist())
    kept: list[Cut] = []
    before = 0
    for cut in cuts:
        if cut.subset == "pool":
            numbers = [number for place, number in enumerate(cut.corners, start=before) if place in keep]
            before += len(cut.corners)
            cut = replace(cut, corners={number: cut.corners[number] for number in numbers})
        kept.append(cut)
    return kept
