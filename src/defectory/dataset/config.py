"""Configuration of the data set: source, split, tiling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from defectory.artifacts.config import Section


class DataConfig(Section):
    """Where the annotated images come from."""

    path: str
    """COCO JSON file, mask folder, YOLO data.yaml, any other layout that `defectory import --help` lists, or a data set
    folder made by Defectory.
    """
    format: str = "auto"
    """`auto` detects the layout and reports it; otherwise a name that `defectory import --help` lists."""
    image_root: str | None = None
    """Folder of the image files, if they are not beside the annotations."""
    defect_free: str | None = None
    """Folder of additional defect-free images."""
    index: str | None = None
    """For mask folders: CSV file with image, mask, class and group in each row."""
    classes: tuple[str, ...] | None = None
    """Keep only these classes; images whose defects all have other classes are left out."""
    min_area_px: int = Field(default=0, ge=0)
    """Drop instances smaller than this."""
    skip_bad: bool = False
    """Skip images and annotations with errors and list them, instead of stopping."""
    unlabelled: Literal["skip", "refuse", "defect-free"] = "skip"
    """What to do with an image without a mask, label file or row: leave it out with a remark (`skip`), stop the import
    (`refuse`), or take it as `defect-free`.
    """
    follow_links: bool = False
    """Follow links that lead outside the data set."""
    mask_threshold: int | None = Field(default=None, ge=1, le=255)
    """Lowest mask value that counts as defect; for masks of one class that were saved as JPEG or smoothed."""
    class_colours: str | None = None
    """Table (CSV or JSON) of colours and class names, for RGB masks."""


class SplitConfig(Section):
    """Settings of the frozen split."""

    test_seed: int | None = Field(default=None, ge=0)
    """Seed that draws test; None takes the project's. Set it to compare projects with other seeds on the same test
    images.
    """
    from_data: bool = False
    """Keep the split that the data set supplies (train, val, test folders or files) instead of drawing one."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the labelled training images to use; val is reduced alike, test stays."""
    num_labelled: int | None = Field(default=None, ge=1)
    """Number of labelled training images to use, instead of a fraction, from as many groups as possible; val is reduced
    alike.
    """
    num_per_class: int | None = Field(default=None, ge=1)
    """Number of labelled training images of each class, instead of a fraction; an image with several classes counts for
    each of them.
    """
    num_defect_free: int | None = Field(default=None, ge=0)
    """Number of defect-free images to train and draw with, from as many groups as possible. None: all outside val and
    test.
    """
    folds: int | None = Field(default=None, ge=2)
    """Number of folds for group k-fold instead of a hold-out."""
    fold: int = Field(default=0, ge=0)
    duplicate_similarity: float = Field(default=0.8, gt=0, le=1)
    """Two images whose details, after alignment, correlate at least this much count as copies and stay in one subset; 1
    treats only images with equal pixels as copies.
    """

    @model_validator(mode="after")
    def _says_once_how_much_is_labelled(self) -> SplitConfig:
        told = {"fraction": self.fraction < 1, "num_labelled": self.num_labelled, "num_per_class": self.num_per_class}
        several = [f"split.{name}" for name, value in told.items() if value]
        if len(several) > 1:
            raise ValueError(f"{' and '.join(several)} are set together; keep one of them")
        return self


class TilingConfig(Section):
    """Settings for cutting images into squares."""

    mode: Literal["auto", "tile", "frame"] = "auto"
    tile_px: int | None = Field(default=None, ge=32, le=8192)
    """Side of a tile in pixels. None: the resolution the base was trained at."""
    scale: float | None = Field(default=None, gt=0, le=16)
    """Tile pixels per image pixel. None: chosen from the sizes of images and defects."""
    max_pool_tiles: int = Field(default=2000, ge=1)
    """Maximum number of pool tiles, sampled evenly over the pool's images."""
    tiles_per_instance: int = Field(default=1, ge=1, le=1000)
    """Number of tiles around each instance, at different positions."""
