"""Loads the user's drawings (CAD renders, sketches) that provide the drivers' geometry in place of photos."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.dataset import Dataset
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Tile, Tiling
from defectory.dataset.tiles import frame_image
from defectory.drivers.config import DriverConfig
from defectory.errors import ConfigError, ImageError
from defectory.formats.raw import image_files
from defectory.geometry import resize_image
from defectory.images.facts import image_size_hw
from defectory.images.load import load_rgb
from defectory.runs.store import RunStore

Image = NDArray[np.uint8]
KEPT_DRAWINGS = 16
"""Drawings kept in memory. Few are enough, since tiles of one image follow each other."""


class Drawings:
    """Drawings of the images of train, pool and val, cut like their tiles.

    Args:
        folder: of drawings, each with the name and size of its image.
        dataset: whose images they are of.
        split: of the images; test images need no drawing.
        tiling: of the tiles.

    Raises:
        ConfigError: an image has no drawing.
        ImageError: a drawing differs in size from its image.
    """

    def __init__(self, folder: Path, *, dataset: Dataset, split: Split, tiling: Tiling) -> None:
        self._tiling = tiling
        by_name, by_stem = named_files(folder)
        images_of_stem = Counter(Path(record.file_name).stem for record in dataset.images)
        self._paths: dict[int, Path] = {}
        for image_id in (*split.train, *split.pool, *split.val):
            record = dataset.image(image_id)
            name = Path(record.file_name)
            path = by_name.get(name.with_suffix("").as_posix())
            if path is None and images_of_stem[name.stem] == 1:
                path = by_stem.get(name.stem)
            if path is None:
                several = " in a folder named as the image's" if images_of_stem[name.stem] > 1 else ""
                raise ConfigError(
                    f"drivers.drawings {folder}",
                    f"no drawing of {record.file_name}",
                    f"add one of that name{several}, whatever the suffix",
                )
            require_size(path, image_size_hw(path), record.size_hw)
            self._paths[image_id] = path
        self._scaled = lru_cache(maxsize=KEPT_DRAWINGS)(self._load)

    def of(self, tile: Tile) -> Image:
        """Cut a tile's part out of its image's drawing, RGB uint8 [tile_px,tile_px,3], black on padding."""
        drawing = self._scaled(self._paths[tile.image_id])
        left, top = (round(offset * tile.scale) for offset in tile.offset_xy)
        height, width = tile.valid_hw
        return on_tile(drawing[top : top + height, left : left + width], tile.valid_hw, self._tiling.tile_px)

    def _load(self, path: Path) -> Image:
        drawing = load_rgb(path)
        if self._tiling.mode == "frame":
            return frame_image(drawing, self._tiling)[0]
        height, width = (max(1, round(length * self._tiling.scale)) for length in drawing.shape[:2])
        return resize_image(drawing, (height, width))


def named_files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Index the image files under a folder by relative path without suffix, and by stem if it is unique."""
    files = image_files(folder)
    stems = Counter(path.stem for path in files)
    by_name = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    return by_name, {path.stem: path for path in files if stems[path.stem] == 1}


def drawings_of(inputs: RunStore, config: DriverConfig) -> Drawings | None:
    """Load a run's drawings; None if geometry comes from the images.

    Raises:
        ConfigError: there is no such folder, or an image has no drawing.
        ImageError: a drawing has another size than its image.
    """
    fix = "give a folder of drawings named as the images and of their size"
    folder = inputs.sources.folder_of(config.drawings, setting="drivers.drawings", fix=fix)
    if folder is None:
        return None
    return Drawings(folder, dataset=inputs.data.dataset, split=inputs.split, tiling=inputs.tiles.tileset.tiling)


def on_tile(window: Image, valid_hw: tuple[int, int], tile_px: int) -> Image:
    """Place a window of a drawing on a tile, RGB uint8 [tile_px,tile_px,3], black on padding."""
    result = np.zeros((tile_px, tile_px, 3), np.uint8)
    result[: valid_hw[0], : valid_hw[1]] = resize_image(np.ascontiguousarray(window), valid_hw)
    return result


def require_size(path: Path, found_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> None:
    """Require that a drawing, or a drawn region, has the size of its image.

    Raises:
        ImageError: sizes differ.
    """
    if found_hw != wanted_hw:
        raise ImageError(
            path,
            f"is {found_hw[0]}x{found_hw[1]}, its image {wanted_hw[0]}x{wanted_hw[1]} (height x width)",
            "draw it at the image's size",
        )
