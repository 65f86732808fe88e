"""Segm and box mAP (COCO), IoU and Hausdorff distance on whole images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.artifacts.dataset import ImageRecord
from defectory.artifacts.scores import SegmenterScores
from defectory.rle import box_xyxy, decode

Mask = NDArray[np.bool_]
MATCH_IOU = 0.1
"""Minimum IoU at which a prediction matches a true instance of its class."""


def score_segmenter(
    images: Sequence[ImageRecord],
    categories: Sequence[Category],
    results: Sequence[Mapping[str, Any]],
    *,
    score_threshold: float,
) -> SegmenterScores:
    """Score COCO results on whole images.

    Args:
        images: true records.
        categories: classes.
        results: COCO results with RLE, in the coordinates of the whole image.
        score_threshold: weaker detections are ignored for IoU and Hausdorff distance.

    Returns:
        The scores. If no image has a true instance, all are 0 and the Hausdorff distance is 1.
    """
    truth = coco_truth(images, categories)
    num_instances = sum(not i.is_crowd for record in images for i in record.instances)
    segm, per_class = _average_precision(truth, results, "segm", categories)
    box, _ = _average_precision(truth, results, "bbox", categories)
    ious, distances = _matched(images, [r for r in results if r["score"] >= score_threshold])
    matched = [value for value in ious if value > 0]
    return SegmenterScores(
        segm_map=segm[0],
        bbox_map=box[0],
        ap50=segm[1],
        iou=float(np.mean(ious)) if ious else 0.0,
        iou_matched=float(np.mean(matched)) if matched else 0.0,
        hausdorff=float(np.mean(distances)) if distances else 1.0,
        score_threshold=score_threshold,
        num_instances=num_instances,
        per_class_segm_map=per_class,
    )


def best_score_threshold(
    images: Sequence[ImageRecord], results: Sequence[Mapping[str, Any]], *, min_iou: float = 0.5
) -> float:
    """Return the score threshold with the best F1 on whole images; 0.5 if no detection is correct.

    Detections are matched in descending order of score, each with the unused true instance of its class that it
    overlaps most. The threshold lies halfway between the last detection kept and the first one dropped.

    Args:
        images: true records of validation.
        results: COCO results with RLE.
        min_iou: minimum IoU of a correct detection.
    """
    records = {record.id: record for record in images}
    left = {r.id: [(i.category_id, decode(i.rle)) for i in r.instances if not i.is_crowd] for r in images}
    num_true = sum(len(true) for true in left.values())
    ranked = sorted((r for r in results if int(r["image_id"]) in records), key=lambda r: -float(r["score"]))
    best, threshold, right = 0.0, 0.5, 0
    for number, result in enumerate(ranked, start=1):
        mask, candidates = _decode(result), left[int(result["image_id"])]
        overlaps = [_iou(mask, other) if label == int(result["category_id"]) else 0.0 for label, other in candidates]
        if overlaps and max(overlaps) >= min_iou:
            candidates.pop(int(np.argmax(overlaps)))
            right += 1
        f1 = 2 * right / (number + num_true)
        if f1 > best:
            weaker = float(ranked[number]["score"]) if number < len(ranked) else 0.0
            best, threshold = f1, (float(result["score"]) + weaker) / 2
    return threshold


def coco_truth(images: Sequence[ImageRecord], categories: Sequence[Category]) -> dict[str, Any]:
    """Return the true instances as a COCO data set."""
    annotations: list[dict[str, Any]] = []
    for record in images:
        for instance in record.instances:
            mask = decode(instance.rle)
            x0, y0, x1, y1 = box_xyxy(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": instance.category_id,
                    "segmentation": {"size": list(instance.rle.size_hw), "counts": instance.rle.counts},
                    "area": int(mask.sum()),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": int(instance.is_crowd),
                }
            )
    return {
        "info": {},
        "images": [
            {"id": r.id, "file_name": r.file_name, "height": r.size_hw[0], "width": r.size_hw[1]} for r in images
        ],
        "annotations": annotations,
        "categories": [{"id": c.id, "name": c.name} for c in categories],
    }


def _average_precision(
    truth: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Literal["segm", "bbox"],
    categories: Sequence[Category],
) -> tuple[tuple[float, float], dict[str, float]]:
    """Return (mAP, AP50) and the mAP per class.

    Classes without true instances are left out; an empty list of results scores 0.
    """
    present = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
    if not results or not present:
        return (0.0, 0.0), {c.name: 0.0 for c in categories if c.id in present}
    from faster_coco_eval import COCO, COCOeval_faster

    with contextlib.redirect_stdout(io.StringIO()):
        api: Any = COCO(truth)
        found = api.loadRes([dict(r) for r in results])
        evaluation: Any = COCOeval_faster(api, found, iouType=kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"]).reshape(
        evaluation.eval["counts"]
    )  # [IoU, recall, class, area, max detections]
    whole = precision[:, :, :, 0, -1]

    def mean(values: NDArray[np.float64]) -> float:
        valid = values[values > -1]
        return float(valid.mean()) if valid.size else 0.0

    per_class = {c.name: mean(whole[:, :, index]) for index, c in enumerate(categories) if c.id in present}
    return (mean(whole), mean(whole[0])), per_class


def _matched(images: Sequence[ImageRecord], results: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Match each true instance with the best unused prediction of its class; return IoU and Hausdorff distances."""
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        by_image.setdefault(int(result["image_id"]), []).append(result)
    ious: list[float] = []
    distances: list[float] = []
    for record in images:
        true = [(i.category_id, decode(i.rle)) for i in record.instances if not i.is_crowd]
        found = [(int(r["category_id"]), _decode(r)) for r in by_image.get(record.id, [])]
        pairs = sorted(
            (
                (_iou(mask, other), t, f)
                for t, (label, mask) in enumerate(true)
                for f, (category, other) in enumerate(found)
                if label == category
            ),
            reverse=True,
        )
        partner: dict[int, int] = {}
        for value, t, f in pairs:
            if value >= MATCH_IOU and t not in partner and f not in partner.values():
                partner[t] = f
        diagonal = float(np.hypot(*record.size_hw))
        for t, (_, mask) in enumerate(true):
            other = found[partner[t]][1] if t in partner else None
            ious.append(_iou(mask, other) if other is not None else 0.0)
            distances.append(min(1.0, hausdorff_px(mask, other) / diagonal) if other is not None else 1.0)
    return ious, distances


def _decode(result: Mapping[str, Any]) -> Mask:
    from defectory.rle import Rle

    coded = cast("Mapping[str, Any]", result["segmentation"])
    size = coded["size"]
    return decode(Rle(size_hw=(int(size[0]), int(size[1])), counts=coded["counts"]))


def _iou(first: Mask, second: Mask) -> float:
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 0.0


def hausdorff_px(first: Mask, second: Mask) -> float:
    """Return the symmetric Hausdorff distance in pixels of two masks bool [H,W].

    It is infinite if only one mask is empty, and 0 if both are.
    """
    if not first.any() and not second.any():
        return 0.0
    if not first.any() or not second.any():
        return float("inf")
    to_first = cv2.distanceTransform((~first).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    to_second = cv2.distanceTransform((~second).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(max(to_second[first].max(), to_first[second].max()))
