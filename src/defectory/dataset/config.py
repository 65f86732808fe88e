"""Configuration of data in: source, split, tiling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from defectory.artifacts.config import Section


class DataConfig(Section):
    """Where the annotated images come from."""

    path: str
    """COCO JSON file, mask folder, YOLO data.yaml, any other layout that `defectory import --help` lists, or a data set
    folder of ours.
    """
    format: str = "auto"
    """auto recognises the layout and says which it is; else a name that `defectory import --help` lists."""
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
    unlabelled: Literal["skip", "refuse", "defect-free"] = "skip"
    """An image for which no mask, label file or row is found is left out with a remark (skip), ends the import
    (refuse), or is defect-free.
    """
    follow_links: bool = False
    """Follow links that lead out of the data set."""
    mask_threshold: int | None = Field(default=None, ge=1, le=255)
    """Mask values from this one on are the defect; for masks of one class that went through JPEG or smoothing."""
    class_colours: str | None = None
    """Table (CSV or JSON) of colours and class names for RGB masks."""


class SplitConfig(Section):
    """The frozen split."""

    seed: int = 0
    from_data: bool = False
    """Keep the split that the data set brings (train, val, test folders or files) in place of drawing one."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the labelled train (and val within it) that may be used."""
    folds: int | None = Field(default=None, ge=2)
    """Group k-fold instead of a hold-out."""
    fold: int = Field(default=0, ge=0)
    duplicate_similarity: float = Field(default=0.8, gt=0, le=1)
    """Correlation of their detail, once laid on each other, from which on two images count as copies and stay in one
    part; 1 keeps equal pixels alone.
    """
    duplicate_distance: int | None = Field(default=None, ge=0)
    """No longer used: `duplicate_similarity` took its place."""


class TilingConfig(Section):
    """How images become squares."""

    mode: Literal["auto", "tile", "frame"] = "auto"
    tile_px: int | None = Field(default=None, ge=32, le=8192)
    """None: what the base was trained at."""
    scale: float | None = Field(default=None, gt=0, le=16)
    """Tile pixels per image pixel. None: chosen from image and defect sizes."""
    max_pool_tiles: int = Field(default=2000, ge=1)
    """The pool has at most this many tiles, spread evenly over its images."""
    tiles_per_instance: int = Field(default=1, ge=1, le=1000)
    """Tiles around each instance, at different places."""
