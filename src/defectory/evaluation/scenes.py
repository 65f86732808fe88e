"""Scenes: an image's true instances and detections, each decoded once to the crop of its bounding box."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.dataset import ImageRecord
from defectory.errors import InputError
from defectory.rle import Rle, decode_crop

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """The mask of a true instance or of a detection."""

    category_id: int
    crop: Mask
    """Bool [h,w]: the mask within its box."""
    box: Box
    """Bounding box (x0, y0, x1, y1) in pixels, ends exclusive."""
    area_px: int
    score: float = 1.0
    """Score of a detection; 1 for a true instance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image's regions; crowds are true regions that need not be found, and where no detection is wrong."""

    record: ImageRecord
    true: tuple[Region, ...]
    crowds: tuple[Region, ...]
    found: tuple[Region, ...]


def check_results(images: Sequence[ImageRecord], results: Sequence[Mapping[str, Any]]) -> None:
    """Check that every detection has a number as its score and belongs to one of the images.

    Args:
        images: true records.
        results: COCO results with RLE.

    Raises:
        InputError: a score is not a finite number, an image is unknown, or a mask has another size than its image.
    """
    records = {record.id: record for record in images}
    for result in results:
        record = records.get(int(result["image_id"]))
        if record is None:
            raise InputError(
                "predictions",
                f"a detection on image {result['image_id']}, which is not one of the {len(records)} images to score",
                "predict the same images again",
            )
        score, size = float(result["score"]), tuple(int(side) for side in result["segmentation"]["size"])
        if not math.isfinite(score):
            raise InputError(
                record.file_name,
                f"a detection has the score {score}",
                "train the segmenter again with a lower learning rate, since its weights are not numbers any more",
            )
        if size != tuple(record.size_hw):
            raise InputError(
                record.file_name,
                f"a predicted mask is {size[0]}x{size[1]}, the image is {record.size_hw[0]}x{record.size_hw[1]} "
                "(height x width)",
                "predict the image again",
            )


def scenes_of(images: Sequence[ImageRecord], results: Sequence[Mapping[str, Any]]) -> Iterator[Scene]:
    """Decode one image after the other.

    Args:
        images: true records.
        results: COCO results with RLE; those of other images are ignored.

    Yields:
        The scene of each image, in the order of `images`.
    """
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        by_image.setdefault(int(result["image_id"]), []).append(result)
    for record in images:
        true = [(_region(i.category_id, i.rle), i.is_crowd) for i in record.instances]
        yield Scene(
            record=record,
            true=tuple(region for region, is_crowd in true if not is_crowd),
            crowds=tuple(region for region, is_crowd in true if is_crowd),
            found=tuple(detection(result) for result in by_image.get(record.id, [])),
        )


def detection(result: Mapping[str, Any]) -> Region:
    """Decode one COCO result with RLE."""
    coded = result["segmentation"]
    size = coded["size"]
    rle = Rle(size_hw=(int(size[0]), int(size[1])), counts=coded["counts"])
    return _region(int(result["category_id"]), rle, score=float(result["score"]))


def _region(category_id: int, rle: Rle, *, score: float = 1.0) -> Region:
    crop, (x, y) = decode_crop(rle)
    box = (x, y, x + crop.shape[1], y + crop.shape[0])
    return Region(category_id=category_id, crop=crop, box=box, area_px=int(np.count_nonzero(crop)), score=score)


def union_box(regions: Sequence[Region]) -> Box:
    """Return the box around all boxes of at least one region."""
    boxes = [region.box for region in regions]
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )


def mask_within(regions: Sequence[Region], box: Box) -> Mask:
    """Return the union of regions, bool [h,w], cut to a box that holds them all."""
    canvas = np.zeros((box[3] - box[1], box[2] - box[0]), bool)
    for region in regions:
        canvas[rows_and_columns(region, box)] |= region.crop
    return canvas


def rows_and_columns(region: Region, box: Box) -> tuple[slice, slice]:
    """Return the place of a region's crop in the pixels of a box that holds it."""
    x0, y0, x1, y1 = region.box
    return slice(y0 - box[1], y1 - box[1]), slice(x0 - box[0], x1 - box[0])


def overlaps(first: Sequence[Region], second: Sequence[Region]) -> NDArray[np.bool_]:
    """Return which boxes of two lists of regions share pixels, bool [N,M]."""
    a, b = _boxes(first)[:, None], _boxes(second)[None]
    return np.logical_and((a[..., :2] < b[..., 2:]).all(axis=-1), (b[..., :2] < a[..., 2:]).all(axis=-1))


def shared_px(first: Region, second: Region) -> int:
    """Return the number of pixels that two regions share."""
    x0, y0 = max(first.box[0], second.box[0]), max(first.box[1], second.box[1])
    x1, y1 = min(first.box[2], second.box[2]), min(first.box[3], second.box[3])
    if x0 >= x1 or y0 >= y1:
        return 0
    one = first.crop[y0 - first.box[1] : y1 - first.box[1], x0 - first.box[0] : x1 - first.box[0]]
    two = second.crop[y0 - second.box[1] : y1 - second.box[1], x0 - second.box[0] : x1 - second.box[0]]
    return int(np.count_nonzero(one & two))


def groups_of(regions: Sequence[Region], *, gap_px: int = 0) -> list[list[int]]:
    """Group regions whose boxes touch, directly or through others, so that each group can be measured on its own.

    Args:
        regions: regions of one image.
        gap_px: boxes at most this far apart belong together: 0 if they share pixels, 1 if they are neighbours.

    Returns:
        The places of each group's regions in the list.
    """
    if len(regions) <= 1:
        return [[0]] if regions else []
    boxes = _boxes(regions)
    near = (boxes[:, None, :2] < boxes[None, :, 2:] + gap_px).all(axis=-1)
    near = near & near.T
    names = np.arange(len(regions))
    while True:
        lowest = np.where(near, names, len(regions)).min(axis=1)
        if (lowest == names).all():
            break
        names = lowest
    groups: dict[int, list[int]] = {}
    for place, name in enumerate(names.tolist()):
        groups.setdefault(name, []).append(place)
    return list(groups.values())


def _boxes(regions: Sequence[Region]) -> NDArray[np.int64]:
    return np.array([region.box for region in regions], np.int64).reshape(-1, 4)
