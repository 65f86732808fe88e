"""Random images with true instances and detections, never square, for all tests of metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.rle import box_xyxy, decode, encode

CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"), Category(id=3, name="never seen"))
SIZE_HW = (60, 92)
LARGE_HW = (230, 341)
SEEDS = range(5)
Mask = NDArray[np.bool_]
Scene = tuple[list[ImageRecord], list[dict[str, Any]]]


def rectangle(x0: int, y0: int, x1: int, y1: int, size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def record(image_id: int, *instances: tuple[int, Mask], crowds: tuple[tuple[int, Mask], ...] = ()) -> ImageRecord:
    coded = [Instance(category_id=c, rle=encode(mask)) for c, mask in instances]
    coded += [Instance(category_id=c, rle=encode(mask), is_crowd=True) for c, mask in crowds]
    size_hw = next((mask.shape for _, mask in (*instances, *crowds)), SIZE_HW)
    return ImageRecord(
        id=image_id,
        file_name=f"{image_id}.png",
        size_hw=(size_hw[0], size_hw[1]),
        sha256="",
        group="g",
        instances=tuple(coded),
    )


def result(image_id: int, category_id: int, score: float, mask: Mask) -> dict[str, Any]:
    x0, y0, x1, y1 = box_xyxy(mask)
    rle = encode(mask)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
    }


def random_mask(rng: np.random.Generator, size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    """A rectangle with holes, a thin line or a disc, up to half as long as the image."""
    height, width = size_hw
    y, x = int(rng.integers(0, height * 2 // 3)), int(rng.integers(0, width * 2 // 3))
    h, w = int(rng.integers(4, height // 2)), int(rng.integers(4, width // 2))
    kind = rng.integers(3)
    if kind == 0:
        return rectangle(x, y, x + w, y + h, size_hw) & (rng.random(size_hw) < 0.9)
    if kind == 1:
        return rectangle(x, y, x + w, y + int(rng.integers(1, 4)), size_hw)
    rows, columns = np.mgrid[:height, :width]
    return ((rows - y - h / 2) / (h / 2)) ** 2 + ((columns - x - w / 2) / (w / 2)) ** 2 <= 1


def random_scene(seed: int, size_hw: tuple[int, int] = SIZE_HW, *, with_crowds: bool = False) -> Scene:
    """True instances of two classes, and detections that shift them, miss some, err in class and invent others.

    Detections of one class overlap, some scores are equal, and some images are defect-free.
    """
    rng = np.random.default_rng(seed)
    records: list[ImageRecord] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, 13):
        instances = [(int(rng.integers(1, 3)), random_mask(rng, size_hw)) for _ in range(rng.integers(0, 4))]
        crowds = ((1, random_mask(rng, size_hw)),) if with_crowds and image_id % 3 == 0 else ()
        one = record(image_id, *instances, crowds=crowds)
        records.append(one.model_copy(update={"size_hw": size_hw}))
        for category_id, mask in instances:
            for _ in range(rng.integers(0, 3)):
                shift = tuple(int(v) for v in rng.integers(-3, 4, 2))
                label = category_id if rng.random() < 0.8 else 3 - category_id
                results.append(result(image_id, label, float(rng.integers(1, 20)) / 20, np.roll(mask, shift, (0, 1))))
        if rng.random() < 0.6:
            score = float(rng.integers(1, 20)) / 20
            results.append(result(image_id, int(rng.integers(1, 3)), score, random_mask(rng, size_hw)))
    return records, results


def masks_of(found: list[dict[str, Any]], image_id: int, *, least: float = 0.0) -> list[tuple[int, float, Mask]]:
    """Class, score and mask of an image's detections."""
    from defectory.rle import Rle

    return [
        (
            row["category_id"],
            row["score"],
            decode(Rle(size_hw=tuple(row["segmentation"]["size"]), counts=row["segmentation"]["counts"])),
        )
        for row in found
        if row["image_id"] == image_id and row["score"] >= least
    ]


def true_masks_of(one: ImageRecord, *, crowds: bool = False) -> list[tuple[int, Mask]]:
    """Class and mask of an image's true instances, or of its crowds."""
    return [(i.category_id, decode(i.rle)) for i in one.instances if i.is_crowd == crowds]
