"""Tiles and frames: how images become squares, and the cutting of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import Dataset, ImageRecord, image_path
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Part, Tile, TileInstance, TileSet, Tiling
from defectory.dataset.config import TilingConfig
from defectory.geometry import THIN_PX, resize_mask, width_px
from defectory.imageio import load_rgb, save_png
from defectory.rle import box_xyxy, decode, encode
from defectory.run import atomic_folder

FRAME_MIN_SCALE = 0.6
"""Whole images are used as frames where they fit a tile at this scale or above."""
NATIVE_SCALE = 0.95
"""From this scale on a frame costs thin defects nothing worth a cut through the image."""
THIN_SHARE = 0.2
"""Where more than this share of the instances would be thin in a frame, images are cut at native detail."""
SLIVER_SHARE = 0.25
"""A cut instance with less than this share of its area in the tile is no instance of it."""
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def choose_tiling(dataset: Dataset, split: Split, config: TilingConfig, tile_px: int) -> Tiling:
    """Choose mode and scale from image and defect sizes of train.

    Frames where whole images fit at `FRAME_MIN_SCALE` and few defects get thin by it, or where defects are larger than a tile; else tiles at
    native detail (decision 020); always tiles where crops of train make up the pool.

    Args:
        dataset: images and instances.
        split: only train is looked at.
        config: what the user fixed.
        tile_px: side of a tile, pixels; the configured one wins.
    """
    side = config.tile_px or tile_px
    records = [dataset.image(i) for i in split.train]
    long_image = float(np.median([max(record.size_hw) for record in records]))
    masks = [decode(instance.rle) for record in records for instance in record.instances]
    sizes = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in map(box_xyxy, masks)]
    long_defect = float(np.quantile(sizes, 0.9)) if sizes else 0.0
    mode = config.mode
    frame_scale = side / long_image
    fits = frame_scale >= FRAME_MIN_SCALE
    large = long_defect > 1.5 * side
    thin_share = float(np.mean([width_px(mask) * frame_scale < THIN_PX for mask in masks])) if masks else 0.0
    blurs = frame_scale < NATIVE_SCALE and thin_share > THIN_SHARE
    cropped = split.pool_source == "train_crops"
    if mode == "auto":
        # no whole image is defect-free then, and frames would leave the pool empty
        mode = "frame" if not cropped and (large or (fits and not blurs)) else "tile"
    if mode == "frame":
        scale = config.scale or side / max(max(record.size_hw) for record in dataset.images)
        why = (
            f"images of about {long_image:.0f} px fit a {side} px frame at scale {scale:.2f}"
            if fits
            else f"defects of about {long_defect:.0f} px ask for frames"
        )
    else:
        scale = config.scale or 1.0
        why = (
            f"images of about {long_image:.0f} px, defects up to about {long_defect:.0f} px: native tiles of {side} px at scale {scale:.2f}"
            + (
                f", since {thin_share:.0%} of the defects would be under {THIN_PX:.0f} px wide in a frame"
                if fits and blurs and not cropped
                else ""
            )
            + (", since no image is defect-free" if cropped else "")
        )
    return Tiling(mode=mode, tile_px=side, scale=round(scale, 4), reason=why)


def cut_tiles(
    folder: Path, dataset: Dataset, split: Split, tiling: Tiling, *, parts: Sequence[Part], out: Path, config: TilingConfig, seed: int
) -> TileSet:
    """Cut the tiles of some parts of a split and write them with their tile set.

    Args:
        folder: data set folder.
        dataset: its value.
        split: which image is in which part.
        tiling: mode, tile side and scale.
        parts: train and pool for training stages; val or test for scoring alone.
        out: folder, replaced as a whole: `tileset.json` and `images/`.
        config: limits.
        seed: of the tiles' places.
    """
    ids = {"train": split.train, "pool": split.pool, "val": split.val, "test": split.test}
    with atomic_folder(out) as target:
        tiles: list[Tile] = []
        for part in parts:
            for image_id in ids[part]:
                tiles += _cut_image(folder, dataset.image(image_id), part, tiling, config, target, seed)
            if part == "pool" and split.pool_source == "train_crops":
                for image_id in split.train:
                    tiles += _cut_image(folder, dataset.image(image_id), "pool", tiling, config, target, seed)
        tiles = _limit_pool(tiles, config.max_pool_tiles, target)
        training = [tile.image_id for tile in tiles if tile.part in ("train", "pool")]
        split.require_training_ids(training, stage="tiles")
        result = TileSet(tiling=tiling, categories=dataset.categories, split_digest=split.digest(), tiles=tuple(tiles))
        result.save(target / "tileset.json")
    return result


def frame_image(image: Image, tiling: Tiling) -> tuple[Image, tuple[int, int]]:
    """Scale a whole image uint8 [H,W,3] and pad it to a square of `tile_px` with black; give it and its valid size."""
    side = tiling.tile_px
    ratio = min(tiling.scale, side / max(image.shape[:2]))
    height, width = max(1, round(image.shape[0] * ratio)), max(1, round(image.shape[1] * ratio))
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:height, :width] = resize_image(image, (height, width))
    return canvas, (height, width)


def resize_image(image: Image, size_hw: tuple[int, int]) -> Image:
    """Resize an image, by area when shrinking."""
    if image.shape[:2] == size_hw:
        return image
    shrink = size_hw[0] < image.shape[0]
    return cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC).astype(np.uint8)


def _cut_image(folder: Path, record: ImageRecord, part: Part, tiling: Tiling, config: TilingConfig, target: Path, seed: int) -> list[Tile]:
    image = load_rgb(image_path(folder, record))
    masks = [decode(i.rle) for i in record.instances]
    if tiling.mode == "frame":
        if part == "pool" and masks:
            return []
        square, valid_hw = frame_image(image, tiling)
        scaled = [
            _seen(source, number, _padded(resize_mask(mask, valid_hw), tiling.tile_px))
            for number, (source, mask) in enumerate(zip(record.instances, masks, strict=True))
        ]
        return [
            _write(record, part, 0, square, scaled, (0.0, 0.0), min(tiling.scale, tiling.tile_px / max(record.size_hw)), valid_hw, target)
        ]
    size_hw = (max(1, round(image.shape[0] * tiling.scale)), max(1, round(image.shape[1] * tiling.scale)))
    image = resize_image(image, size_hw)
    masks = [resize_mask(mask, size_hw) for mask in masks]
    any_defect = np.any(masks, axis=0) if masks else np.zeros(size_hw, bool)
    rng = np.random.default_rng([3, seed, record.id])
    corners: list[tuple[int, int]] = []
    if part != "pool":
        for mask in masks:
            corners += [_corner_around(mask, size_hw, tiling.tile_px, rng) for _ in range(config.tiles_per_instance)]
    if not masks or part in ("pool", "test", "val"):
        corners += [c for c in _grid(size_hw, tiling.tile_px) if not _window(any_defect, c, tiling.tile_px).any()]
    tiles: list[Tile] = []
    for number, corner in enumerate(dict.fromkeys(corners)):
        square, valid_hw = cut_window(image, corner, tiling.tile_px)
        kept: list[TileInstance] = []
        for index, (source, mask) in enumerate(zip(record.instances, masks, strict=True)):
            cut = _padded(_window(mask, corner, tiling.tile_px), tiling.tile_px)
            if cut.sum() >= max(4, SLIVER_SHARE * mask.sum()) or cut.sum() >= 200:
                kept.append(_seen(source, index, cut, visible_share=float(cut.sum() / mask.sum())))
        offset = (corner[1] / tiling.scale, corner[0] / tiling.scale)
        if part != "pool" and masks and not kept and _window(any_defect, corner, tiling.tile_px).any():
            continue
        tiles.append(_write(record, part, number, square, kept, offset, tiling.scale, valid_hw, target))
    return tiles


def _corner_around(mask: Mask, size_hw: tuple[int, int], side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Give the upper left corner (y, x) of a tile that holds a defect at a random place, or a random part of a large one."""
    ys, xs = np.nonzero(mask)
    pick = int(rng.integers(len(ys)))
    corner: list[int] = []
    for low, high, at, limit in ((ys.min(), ys.max() + 1, ys[pick], size_hw[0]), (xs.min(), xs.max() + 1, xs[pick], size_hw[1])):
        if high - low + 8 <= side:
            start = rng.integers(int(high) + 4 - side, int(low) - 4 + 1)
        else:
            start = int(at) - side // 2 + rng.integers(-side // 8, side // 8 + 1)
        corner.append(int(np.clip(start, 0, max(0, limit - side))))
    return corner[0], corner[1]


def _grid(size_hw: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """Give the corners (y, x) of the fewest tiles that cover an image, spread evenly and laid against its borders.

    Tiles of its middle alone would have less of what lies at the borders, a dark vignette for one, than tiles around defects have.
    """

    def starts(length: int) -> list[int]:
        count = -(-length // side)
        return [round(i * (length - side) / (count - 1)) for i in range(count)] if count > 1 else [0]

    return [(y, x) for y in starts(size_hw[0]) for x in starts(size_hw[1])]


def _window(mask: Mask, corner: tuple[int, int], side: int) -> Mask:
    return mask[corner[0] : corner[0] + side, corner[1] : corner[1] + side]


def cut_window(image: Image, corner: tuple[int, int], side: int) -> tuple[Image, tuple[int, int]]:
    """Give the square of `side` pixels at a corner (y, x) of an image uint8 [H,W,3], its border repeated as padding, and its image part."""
    window = image[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    valid_hw = (window.shape[0], window.shape[1])
    if valid_hw != (side, side):
        window = np.pad(window, ((0, side - valid_hw[0]), (0, side - valid_hw[1]), (0, 0)), mode="edge")
    return np.ascontiguousarray(window), valid_hw


def _padded(mask: Mask, side: int) -> Mask:
    return np.pad(mask, ((0, side - mask.shape[0]), (0, side - mask.shape[1])))


def _seen(source: Instance, number: int, mask: Mask, *, visible_share: float = 1.0) -> TileInstance:
    return TileInstance(
        category_id=source.category_id, rle=encode(mask), is_crowd=source.is_crowd, number=number, visible_share=visible_share
    )


def _write(
    record: ImageRecord, part: Part, number: int, square: Image, instances: Sequence[TileInstance], offset_xy: tuple[float, float], scale: float,
    valid_hw: tuple[int, int], target: Path,
) -> Tile:  # fmt: skip
    tile_id = f"{part}-{record.id:06d}-{number:03d}"
    file_name = f"images/{tile_id}.png"
    save_png(target / file_name, square)
    return Tile(
        id=tile_id,
        file_name=file_name,
        image_id=record.id,
        part=part,
        offset_xy=offset_xy,
        scale=scale,
        valid_hw=valid_hw,
        instances=tuple(instances),
    )


def _limit_pool(tiles: list[Tile], limit: int, target: Path) -> list[Tile]:
    """Keep at most `limit` pool tiles, spread evenly over all of them."""
    pool = [tile for tile in tiles if tile.part == "pool"]
    if len(pool) <= limit:
        return tiles
    keep = {pool[i].id for i in np.linspace(0, len(pool) - 1, limit).round().astype(int)}
    for tile in pool:
        if tile.id not in keep:
            (target / tile.file_name).unlink()
    return [tile for tile in tiles if tile.part != "pool" or tile.id in keep]
