"""COCO's average precision and recall of masks and boxes, through faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.scenes import Region, Scene, check_results, scenes_of

Kind = Literal["segm", "bbox"]
SIZES = ("small", "medium", "large")
"""COCO's sizes by area of the true mask: below 32 x 32 pixels, below 96 x 96, and above."""
SMALL_PX, MEDIUM_PX = 32**2, 96**2
MAX_DETECTIONS = 100
"""Only this many of an image's strongest detections of a class count."""


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Average precision (AP) and recall (AR), 0..1, over IoU thresholds .50, .55, ... .95."""

    map: float
    ap50: float
    """AP at an IoU threshold of .5."""
    ar100: float
    """AR of at most 100 detections per image and class."""


@dataclass(frozen=True, kw_only=True)
class Detection(Averages):
    """COCO's figures over classes, by size and by class."""

    map_by_size: dict[str, float | None]
    """None for a size that no true instance has."""
    per_class: dict[int, Averages]
    """By category id, without classes that have no true instance."""


def size_of(area_px: int) -> str:
    """Return COCO's name of a size: small, medium or large."""
    return SIZES[(area_px >= SMALL_PX) + (area_px >= MEDIUM_PX)]


def segm_map(
    images: Sequence[ImageRecord], categories: Sequence[Category], results: Sequence[Mapping[str, Any]]
) -> float:
    """Return the segm mAP of COCO results on whole images, and compute nothing else.

    Raises:
        InputError: as for `check_results`.
    """
    check_results(images, results)
    return score_detection(coco_truth(images, categories), categories, results, "segm").map


def score_detection(
    truth: dict[str, Any], categories: Sequence[Category], results: Sequence[Mapping[str, Any]], kind: Kind
) -> Detection:
    """Score COCO results.

    Args:
        truth: as from `coco_truth`.
        categories: classes, ids ascending.
        results: COCO results with RLE and box.
        kind: whether masks or boxes are compared.

    Returns:
        The figures; all are 0 without a result or without a true instance.
    """
    areas: dict[int, list[int]] = {}
    for row in truth["annotations"]:
        if not row["iscrowd"]:
            areas.setdefault(row["category_id"], []).append(row["area"])
    if not results or not areas:
        nothing = Averages(map=0.0, ap50=0.0, ar100=0.0)
        sizes = {size for of in areas.values() for area in of for size in _sizes_of(area)}
        return Detection(
            map=0.0,
            ap50=0.0,
            ar100=0.0,
            map_by_size={size: 0.0 if size in sizes else None for size in SIZES},
            per_class={c.id: nothing for c in categories if c.id in areas},
        )
    precision, recall = _accumulated(truth, results, kind)
    places = {c.id: place for place, c in enumerate(categories) if c.id in areas}
    every = _averages(precision[:, :, :, 0, -1], recall[:, :, 0, -1])
    return Detection(
        map=every.map,
        ap50=every.ap50,
        ar100=every.ar100,
        map_by_size={size: _mean(precision[:, :, :, place, -1]) for place, size in enumerate(SIZES, start=1)},
        per_class={
            category_id: _averages(precision[:, :, [place], 0, -1], recall[:, [place], 0, -1])
            for category_id, place in places.items()
        },
    )


def coco_truth(images: Sequence[ImageRecord], categories: Sequence[Category]) -> dict[str, Any]:
    """Return the true instances as a COCO data set."""
    return coco_data_set(images, categories, (row for scene in scenes_of(images, ()) for row in truth_rows(scene)))


def coco_data_set(
    images: Sequence[ImageRecord], categories: Sequence[Category], rows: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Return a COCO data set of the rows that `truth_rows` makes of each image."""
    return {
        "info": {},
        "images": [
            {"id": r.id, "file_name": r.file_name, "height": r.size_hw[0], "width": r.size_hw[1]} for r in images
        ],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
        "categories": [{"id": c.id, "name": c.name} for c in categories],
    }


def truth_rows(scene: Scene) -> list[dict[str, Any]]:
    """Return COCO's annotations of a scene, without their ids."""
    instances, true, crowds = scene.record.instances, iter(scene.true), iter(scene.crowds)
    rows: list[dict[str, Any]] = []
    for instance in instances:
        region: Region = next(crowds if instance.is_crowd else true)
        x0, y0, x1, y1 = region.box
        rows.append(
            {
                "image_id": scene.record.id,
                "category_id": instance.category_id,
                "segmentation": {"size": list(instance.rle.size_hw), "counts": instance.rle.counts},
                "area": region.area_px,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(instance.is_crowd),
            }
        )
    return rows


def _accumulated(
    truth: dict[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision [IoU, recall, class, size, max detections] and recall [IoU, class, size, max detections]."""
    from faster_coco_eval import COCO, COCOeval_faster

    # with the box beside the mask, COCO's tools take the area of a detection from the box
    kept = ("image_id", "category_id", "score", "segmentation" if kind == "segm" else "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        api: Any = COCO(truth)
        found = api.loadRes([{key: result[key] for key in kept} for result in results])
        evaluation: Any = COCOeval_faster(api, found, iouType=kind)
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    counts = list(evaluation.eval["counts"])
    precision = np.asarray(evaluation.eval["precision"], np.float64).reshape(counts)
    return precision, np.asarray(evaluation.eval["recall"], np.float64).reshape([counts[0], *counts[2:]])


def _averages(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> Averages:
    return Averages(map=_mean(precision) or 0.0, ap50=_mean(precision[0]) or 0.0, ar100=_mean(recall) or 0.0)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of values that are not -1, which stands for a class or size without a true instance."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _sizes_of(area_px: int) -> list[str]:
    # COCO's ranges include both ends
    limits = ((0, SMALL_PX), (SMALL_PX, MEDIUM_PX), (MEDIUM_PX, 10**10))
    return [size for size, (low, high) in zip(SIZES, limits, strict=True) if low <= area_px <= high]
