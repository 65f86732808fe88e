"""Loads the delivered synthetic set from its files, as a user would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.dataset.tiles import resize_image
from defectory.geometry import resize_mask
from defectory.images.load import load_rgb
from defectory.images.valuerange import ValueRange
from defectory.rle import Rle, decode, encode
from defectory.runs import layout

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationTile


@dataclass(frozen=True, kw_only=True)
class SyntheticImage:
    """One image of the synthetic set.

    Attributes:
        path: of the image file.
        size_hw: of the image, pixels.
        instances: its labels.
        provenance: what it was made from.
    """

    path: Path
    size_hw: tuple[int, int]
    instances: tuple[Instance, ...]
    provenance: Mapping[str, Any]

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Return the ids of the images that its background and its masks come from."""
        return tuple(self.provenance["image_ids"])


def load_synthetic(folder: Path) -> list[SyntheticImage]:
    """Load the synthetic set from `annotations.json` (COCO, RLE) and `provenance.jsonl`."""
    content = json.loads((folder / layout.ANNOTATIONS).read_bytes())
    lines = (folder / layout.PROVENANCE).read_text(encoding="utf-8").splitlines()
    records = {record["image"]: record for record in map(json.loads, lines)}
    instances: dict[int, list[Instance]] = {}
    for row in content["annotations"]:
        rle = Rle(size_hw=tuple(row["segmentation"]["size"]), counts=row["segmentation"]["counts"])
        instances.setdefault(row["image_id"], []).append(Instance(category_id=row["category_id"], rle=rle))
    return [
        SyntheticImage(
            path=folder / layout.IMAGES / about["file_name"],
            size_hw=(about["height"], about["width"]),
            instances=tuple(instances.get(about["id"], ())),
            provenance=records[about["file_name"]],
        )
        for about in content["images"]
    ]


def synthetic_tiles(
    images: list[SyntheticImage], *, tile_px: int, value_range: ValueRange | None
) -> list[SegmentationTile]:
    """Return synthetic images as the tiles that segmenters train on.

    Args:
        images: tiles without padding, or frames with an inserted defect.
        tile_px: side of a tile.
        value_range: the range in which frames are read.
    """
    from defectory.segmentation.data import SegmentationTile

    tiles: list[SegmentationTile] = []
    for of in images:
        image, window = load_rgb(of.path, value_range), of.provenance["window"]
        masks = [(i.category_id, decode(i.rle)) for i in of.instances]
        if window is not None:
            (top, left), (height, width), tile_hw = (tuple(window[k]) for k in ("corner_yx", "size_hw", "tile_hw"))
            inside = (slice(top, top + height), slice(left, left + width))
            image = resize_image(np.ascontiguousarray(image[inside]), tile_hw)
            masks = [(label, resize_mask(np.ascontiguousarray(mask[inside]), tile_hw)) for label, mask in masks]
        padded = tuple((label, encode(_padded(mask, tile_px))) for label, mask in masks)
        tiles.append(
            SegmentationTile(id=of.path.stem, image=_padded(image, tile_px), instances=padded, image_ids=of.image_ids)
        )
    return tiles


def _padded(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Pad an image or a mask at the right and below with zeros."""
    if pixels.shape[:2] == (side, side):
        return pixels
    result = np.zeros((side, side, *pixels.shape[2:]), pixels.dtype)
    result[: pixels.shape[0], : pixels.shape[1]] = pixels
    return result
