"""Regions drawn by the user: where on an image defects may lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.dataset import Dataset
from defectory.artifacts.tiles import Tile
from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError, ImageError
from defectory.formats.raw import image_files
from defectory.geometry import resize_mask
from defectory.images.load import load_rgb
from defectory.runs.store import RunStore
from defectory.stages.parts.drawings import require_size
from defectory.stages.parts.pool import augmentation_of

Mask = NDArray[np.bool_]


def load_region(path: Path, size_hw: tuple[int, int]) -> Mask:
    """Load a drawn region, bool [H,W]; any colour but black allows defects.

    Raises:
        ImageError: it has another size than its image, or is empty.
    """
    region: Mask = load_rgb(path).max(axis=2) > 0
    require_size(path, (region.shape[0], region.shape[1]), size_hw)
    if not region.any():
        raise ImageError(
            path, "allows no pixel", "draw where defects may lie in any colour but black, or delete the file"
        )
    return region


def region_window(
    region: Mask, *, corner_yx: tuple[int, int], size_hw: tuple[int, int], valid_hw: tuple[int, int], tile_px: int
) -> Mask:
    """Cut a tile's part out of an image's region, bool [tile_px,tile_px]. Padding is never allowed."""
    window = region[corner_yx[0] : corner_yx[0] + size_hw[0], corner_yx[1] : corner_yx[1] + size_hw[1]]
    result = np.zeros((tile_px, tile_px), bool)
    if window.any():
        result[: valid_hw[0], : valid_hw[1]] = resize_mask(window, valid_hw)
    return result


def load_regions(folder: Path, dataset: Dataset) -> dict[int, Mask]:
    """Load the regions of a folder by image id; each file is named like its image.

    Raises:
        ConfigError: a file name matches no image or several, or there is no file.
        ImageError: a region has another size than its image, or is empty.
    """
    by_name = {Path(record.file_name).with_suffix("").as_posix(): record for record in dataset.images}
    stems = Counter(Path(record.file_name).stem for record in dataset.images)
    by_stem = {
        Path(record.file_name).stem: record for record in dataset.images if stems[Path(record.file_name).stem] == 1
    }
    regions: dict[int, Mask] = {}
    for path in image_files(folder):
        record = by_name.get(path.relative_to(folder).with_suffix("").as_posix(), by_stem.get(path.stem))
        if record is None and stems[path.stem] > 1:
            raise ConfigError(
                path, f"{stems[path.stem]} images are named so", "put the region in a folder named as its image's"
            )
        if record is None:
            raise ConfigError(path, "no image is named so", "name a region as its image, or delete the file")
        if record.id in regions:
            raise ConfigError(path, f"a second region of {record.file_name}", "delete one of the two")
        regions[record.id] = load_region(path, record.size_hw)
    if not regions:
        raise ConfigError(f"masks.regions {folder}", "holds no image file", "draw regions, or leave the setting out")
    return regions


def tile_regions(inputs: RunStore, config: ProjectConfig) -> Callable[[Tile, int | None], Mask | None]:
    """Return a function that maps a pool tile and an augmentation seed to its region; None allows every place.

    Raises:
        ConfigError: the folder does not exist, or a file name matches no image or several.
        ImageError: a region has another size than its image, or is empty.
    """
    fix = "give a folder of images named as the data set's, white where defects may lie"
    folder = inputs.sources.folder_of(config.masks.regions, setting="masks.regions", fix=fix)
    if folder is None:
        return lambda _tile, _seed: None
    regions = load_regions(folder, inputs.data.dataset)
    tiles, flip = inputs.tiles, config.augmentation.flip

    def region_of(tile: Tile, augmentation_seed: int | None) -> Mask | None:
        region = regions.get(tile.image_id)
        if region is None:
            return None
        corner_yx = round(tile.offset_xy[1]), round(tile.offset_xy[0])
        size_hw = round(tile.valid_hw[0] / tile.scale), round(tile.valid_hw[1] / tile.scale)
        shown = region_window(
            region, corner_yx=corner_yx, size_hw=size_hw, valid_hw=tile.valid_hw, tile_px=tiles.tileset.tiling.tile_px
        )
        if augmentation_seed is None:
            return shown
        return augmentation_of(tile, tiles.image(tile), augmentation_seed, flip=flip).apply_mask(shown)

    return region_of
