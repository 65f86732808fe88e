"""Tiles and frames: choose how images become squares, and cut them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import Dataset, ImageRecord, image_path
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Subset, Tile, TileInstance, TileSet, Tiling
from defectory.dataset.config import TilingConfig
from defectory.dataset.tile_plan import Cut, Patch, patches_of, plan_cuts, scaled_size_hw
from defectory.errors import ConfigError, ImageError, StageError
from defectory.folders.swap import atomic_folder
from defectory.geometry import THIN_PX, is_thinner, resize_image
from defectory.images.faults import MAX_PIXELS
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.images.valuerange import ValueRange
from defectory.rle import Rle, box_of, decode_crop, encode_crop

FRAME_MIN_SCALE = 0.6
"""Whole images become frames if they fit a tile at this scale or above."""
NATIVE_SCALE = 0.95
"""From this scale, a frame loses too little of thin defects to justify cutting the image."""
THIN_SHARE = 0.2
"""If more than this share of the instances would be thin in a frame, images are cut at native resolution."""
SLIVER_SHARE = 0.25
"""A cut instance with a smaller share of its area in the tile is not an instance of the tile."""
_MIN_AREA_PX = 4
_ALWAYS_KEPT_PX = 200
"""A cut instance of at least this area is kept, however small its share of the whole."""
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CutProgress:
    """Progress event: `done` of `total` images are cut."""

    done: int
    total: int


def choose_tiling(dataset: Dataset, split: Split, config: TilingConfig, tile_px: int) -> Tiling:
    """Choose mode and scale from the image and defect sizes of train.

    Frames are used if whole images fit at `FRAME_MIN_SCALE` and few defects become thin, or if defects are larger than
    a tile. Otherwise, and always if the pool consists of crops of train, tiles are cut at native resolution (decision
    020).

    Args:
        dataset: images and instances.
        split: only train is used.
        config: what the user fixed.
        tile_px: side of a tile, pixels; a configured value takes precedence.

    Raises:
        StageError: train is empty.
        ConfigError: the configured scale makes images too large.
    """
    side = config.tile_px or tile_px
    records = [dataset.image(i) for i in split.train]
    if not records:
        raise StageError(
            "the train subset holds no image; add labelled images, or lower split.val_share and split.test_share"
        )
    long_image = float(np.median([max(record.size_hw) for record in records]))
    boxes = [box_of(instance.rle) for record in records for instance in record.instances]
    sizes = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
    long_defect = float(np.quantile(sizes, 0.9)) if sizes else 0.0
    mode = config.mode
    frame_scale = side / long_image
    fits = frame_scale >= FRAME_MIN_SCALE
    large = long_defect > 1.5 * side
    # measure only if it decides: this decodes every mask
    thin_share = _thin_share(records, frame_scale) if fits and frame_scale < NATIVE_SCALE else 0.0
    blurs = thin_share > THIN_SHARE
    cropped = split.pool_source == "train_crops"
    if mode == "auto":
        # with crops of train as pool, no whole image is defect-free, and frames would leave the pool empty
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
            f"images of about {long_image:.0f} px, defects up to about {long_defect:.0f} px: native tiles of {side} "
            f"px at scale {scale:.2f}"
            + (
                f", since {thin_share:.0%} of the defects would be under {THIN_PX:.0f} px wide in a frame"
                if blurs and not cropped
                else ""
            )
            + (", since no image is defect-free" if cropped else "")
        )
        largest = max(dataset.images, key=lambda record: record.size_hw[0] * record.size_hw[1])
        if largest.size_hw[0] * largest.size_hw[1] * scale**2 > MAX_PIXELS:
            found = f"is {scale:g}, which makes {largest.file_name} larger than {MAX_PIXELS / 1e6:.0f} million pixels"
            raise ConfigError("tiling.scale", found, "give a smaller scale")
    return Tiling(mode=mode, tile_px=side, scale=round(scale, 4), reason=why)


def _thin_share(records: Sequence[ImageRecord], scale: float) -> float:
    """Return the share of instances that are thin at a scale; one mask is in memory at a time."""
    rles = [instance.rle for record in records for instance in record.instances]
    return float(np.mean([is_thinner(decode_crop(rle)[0], THIN_PX / scale) for rle in rles])) if rles else 0.0


def cut_tiles(
    folder: Path,
    dataset: Dataset,
    split: Split,
    tiling: Tiling,
    *,
    subsets: Sequence[Subset],
    out: Path,
    config: TilingConfig,
    seed: int,
) -> Generator[CutProgress, None, TileSet]:
    """Cut the tiles of some subsets of a split and write them; the generator returns their tile set.

    The tiles are chosen before any image is read. Every image is read once, and only one image and one of its masks are
    in memory at a time.

    Args:
        folder: data set folder.
        dataset: its value.
        split: subset of each image.
        tiling: mode, tile side and scale.
        subsets: train and pool for training stages; val or test only for scoring.
        out: folder, replaced as a whole: `tileset.json` and `images/`.
        config: limits.
        seed: seed of the tile positions.

    Yields:
        Progress after every image.

    Raises:
        ImageError: an image cannot be read, or its size differs from that at import.
        OutputError: `out` cannot be written.
    """
    cuts = plan_cuts(dataset, split, tiling, subsets=subsets, config=config, seed=seed)
    split.require_training_ids([cut.record.id for cut in cuts if cut.subset in ("train", "pool")], stage="tiles")
    of_image: dict[int, list[int]] = {}
    for place, cut in enumerate(cuts):
        if cut.corners:
            of_image.setdefault(cut.record.id, []).append(place)
    tiles_of: list[list[Tile]] = [[] for _ in cuts]
    with atomic_folder(out, kind="dataset") as target:
        for done, places in enumerate(of_image.values(), start=1):
            image = _scaled_image(folder, cuts[places[0]].record, tiling, dataset.value_range)
            for place in places:
                tiles_of[place] = _cut_image(image, cuts[place], tiling, target)
            yield CutProgress(done=done, total=len(of_image))
        tiles = tuple(tile for some in tiles_of for tile in some)
        result = TileSet(tiling=tiling, categories=dataset.categories, split_digest=split.digest(), tiles=tiles)
        result.save(target / "tileset.json")
    return result


def frame_image(image: Image, tiling: Tiling) -> tuple[Image, tuple[int, int]]:
    """Scale an image uint8 [H,W,3] and pad it with black to a square of `tile_px`; return it and its valid size."""
    side = tiling.tile_px
    ratio = min(tiling.scale, side / max(image.shape[:2]))
    height, width = max(1, round(image.shape[0] * ratio)), max(1, round(image.shape[1] * ratio))
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:height, :width] = resize_image(image, (height, width))
    return canvas, (height, width)


def cut_window(image: Image, corner: tuple[int, int], side: int) -> tuple[Image, tuple[int, int]]:
    """Cut the square of `side` pixels at a corner (y, x) of an image uint8 [H,W,3]; return it and its valid size.

    Outside the image, the border pixels are repeated.
    """
    window = image[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    valid_hw = (window.shape[0], window.shape[1])
    if valid_hw != (side, side):
        window = np.pad(window, ((0, side - valid_hw[0]), (0, side - valid_hw[1]), (0, 0)), mode="edge")
    return np.ascontiguousarray(window), valid_hw


def _scaled_image(folder: Path, record: ImageRecord, tiling: Tiling, value_range: ValueRange | None) -> Image:
    path = image_path(folder, record)
    image = load_rgb(path, value_range)
    if image.shape[:2] != record.size_hw:
        (height, width), (was_height, was_width) = image.shape[:2], record.size_hw
        raise ImageError(
            path,
            f"is {height}x{width} pixels, but was {was_height}x{was_width} when it was imported",
            "import the data again",
        )
    return image if tiling.mode == "frame" else resize_image(image, scaled_size_hw(record, tiling))


def _cut_image(image: Image, cut: Cut, tiling: Tiling, target: Path) -> list[Tile]:
    seen = _seen_in_tiles(cut, tiling)
    tiles: list[Tile] = []
    for number, corner in cut.corners.items():
        instances, is_touched = seen[number]
        if tiling.mode == "frame":
            square, valid_hw = frame_image(image, tiling)
            scale = min(tiling.scale, tiling.tile_px / max(cut.record.size_hw))
        else:
            if is_touched and not instances:  # a sliver alone is neither a defect nor defect-free
                continue
            square, valid_hw = cut_window(image, corner, tiling.tile_px)
            scale = tiling.scale
        tile = Tile(
            id=f"{cut.subset}-{cut.record.id:06d}-{number:03d}",
            file_name=f"images/{cut.subset}-{cut.record.id:06d}-{number:03d}.png",
            image_id=cut.record.id,
            subset=cut.subset,
            offset_xy=(corner[1] / tiling.scale, corner[0] / tiling.scale),
            scale=scale,
            valid_hw=valid_hw,
            instances=tuple(instances),
        )
        save_png(target / tile.file_name, square, durable=False)
        tiles.append(tile)
    return tiles


def _seen_in_tiles(cut: Cut, tiling: Tiling) -> dict[int, tuple[list[TileInstance], bool]]:
    """Return for each tile number its instances and whether any mask touches the tile."""
    seen: dict[int, tuple[list[TileInstance], bool]] = {number: ([], False) for number in cut.corners}
    side, is_frame = tiling.tile_px, tiling.mode == "frame"
    numbers, corners = list(cut.corners), np.array([*cut.corners.values()], np.int64).reshape(-1, 2)
    patches = patches_of(cut.record, scaled_size_hw(cut.record, tiling))
    for index, (source, patch) in enumerate(zip(cut.record.instances, patches, strict=True)):
        area_px = int(patch.mask.sum())
        for place in _near(corners, patch, side):
            instances, number = seen[numbers[place]][0], numbers[place]
            found = patch.within(cut.corners[number], side)
            visible_px = 0 if found is None else int(found[0].sum())
            if found is None or not visible_px:
                continue
            seen[number] = (instances, True)
            if is_frame or visible_px >= max(_MIN_AREA_PX, SLIVER_SHARE * area_px) or visible_px >= _ALWAYS_KEPT_PX:
                mask, (y, x) = found
                share = 1.0 if is_frame else visible_px / area_px
                instances.append(_instance(source, index, encode_crop(mask, (x, y), (side, side)), visible_share=share))
    return seen


def _near(corners: NDArray[np.int64], patch: Patch, side: int) -> list[int]:
    """Return the indices of the corners (y, x) int64 [n,2] whose squares overlap a mask's box."""
    low, high = np.array(patch.corner_yx), np.array(patch.corner_yx) + patch.mask.shape
    return np.flatnonzero(((corners < high) & (corners + side > low)).all(axis=1)).tolist()


def _instance(source: Instance, number: int, rle: Rle, *, visible_share: float) -> TileInstance:
    return TileInstance(
        category_id=source.category_id, rle=rle, is_crowd=source.is_crowd, number=number, visible_share=visible_share
    )
