"""Configuration of data in: source, split, tiling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from defectory.artifacts.config import Section


class DataConfig(Section):
    """Where the annotated images come from."""

    path: str
    """COCO JSON file, mask-folder root, YOLO data.yaml, or a data set folder made by `defectory import`."""
    format: Literal["auto", "coco", "masks", "yolo", "defectory"] = "auto"
    image_root: str | None = None
    """Where image files lie when not beside the annotations."""
    defect_free: str | None = None
    """Folder of further defect-free images."""
    index: str | None = None
    """Mask folders: CSV that names image, mask, class and group per row."""
    classes: tuple[str, ...] | None = None
    """Keep only these classes; images whose defects are all of other classes are left out."""
    min_area_px: int = Field(default=0, ge=0)
    """Drop instances smaller than this."""
    skip_bad: bool = False
    """Continue past bad images and annotations and list them."""


class SplitConfig(Section):
    """The frozen split."""

    seed: int = 0
    val_share: float = Field(default=0.2, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the labelled train (and val within it) that may be used."""
    folds: int | None = Field(default=None, ge=2)
    """Group k-fold instead of a hold-out."""
    fold: int = Field(default=0, ge=0)
    duplicate_distance: int = Field(default=4, ge=0)
    """Perceptual-hash distance (bits of 64) under which two images count as near-duplicates."""


class TilingConfig(Section):
    """How images become squares."""

    mode: Literal["auto", "tile", "frame"] = "auto"
    tile_px: int | None = Field(default=None, ge=32)
    """None: what the base was trained at."""
    scale: float | None = Field(default=None, gt=0)
    """None: chosen from image and defect sizes."""
    max_pool_tiles: int = Field(default=2000, ge=1)
    tiles_per_instance: int = Field(default=1, ge=1)
