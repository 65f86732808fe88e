"""Table of right and wrong detections of one segmenter, and its segm mAP for any number of copies of each image.

A bootstrap draws some images twice and others not at all. Masks are compared once, when the table is made; each
resample then costs a few cumulative sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.detection import MAX_DETECTIONS
from defectory.evaluation.scenes import check_results

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
T = TypeVar("T")

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""
CHUNK = 250
"""Resamples that are scored at once; more of them take more memory and no less time."""


@dataclass(frozen=True, kw_only=True)
class ClassMatches:
    """All detections of one class, by descending score; equal scores by image id.

    Attributes:
        scores: float [detections].
        image: position of each detection's image in the table, int [detections].
        right: whether a true instance was matched, bool [IoU thresholds, detections].
        ignored: whether a crowd was matched, so that the detection does not count, bool as `right`.
        num_true: true instances of each image without crowds, int [images].
    """

    scores: Floats
    image: Ints
    right: Flags
    ignored: Flags
    num_true: Ints


@dataclass(frozen=True, kw_only=True)
class MatchTable:
    """Matched detections of one segmenter on a fixed list of images.

    Attributes:
        num_images: of the list.
        classes: by category id; classes without true instances and detections are left out.
    """

    num_images: int
    classes: Mapping[int, ClassMatches]


def match_table(
    images: Sequence[ImageRecord], categories: Sequence[Category], results: Sequence[Mapping[str, Any]]
) -> MatchTable:
    """Match detections with true instances as COCO does, by mask IoU.

    Args:
        images: true records. Their order is the order of `num_true` and of the copies in `segm_map`.
        categories: classes.
        results: COCO results with RLE, in the coordinates of the whole image.

    Raises:
        InputError: as for `check_results`.
    """
    check_results(images, results)
    position = {record.id: index for index, record in enumerate(images)}
    found: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for result in results:
        found.setdefault((int(result["category_id"]), int(result["image_id"])), []).append(result)
    classes: dict[int, ClassMatches] = {}
    for category in categories:
        num_true = np.zeros(len(images), np.int64)
        parts: list[tuple[Floats, Ints, Flags, Flags]] = []
        for record in sorted(images, key=lambda record: record.id):
            true = [i for i in record.instances if i.category_id == category.id]
            num_true[position[record.id]] = sum(not i.is_crowd for i in true)
            detections = found.get((category.id, record.id), [])
            if detections:
                scores, right, ignored = _matched(true, detections)
                parts.append((scores, np.full(len(scores), position[record.id]), right, ignored))
        if parts or num_true.any():
            classes[category.id] = _joined(parts, num_true)
    return MatchTable(num_images=len(images), classes=classes)


def segm_map(table: MatchTable, copies: NDArray[np.integer[Any]] | None = None) -> Floats:
    """Compute segm mAP on data sets that hold each image a given number of times.

    It equals COCO's figure on physically repeated images, with the copies of an image one after another. Classes
    without a true instance in a data set are left out of its mean; without any class it is 0.

    Args:
        table: of the segmenter.
        copies: number of copies of each image, int [data sets, images]; None scores the images as they are.

    Returns:
        Segm mAP, float [data sets].
    """
    wanted = copies_or_one_each(copies, table.num_images)
    classes = [(matches, matches.num_true) for matches in table.classes.values()]
    return mean_over_classes(classes, wanted, _average_precision, chunk=CHUNK)


def copies_or_one_each(copies: NDArray[np.integer[Any]] | None, num_images: int) -> Ints:
    """Return the copies of each image, int [data sets, images]; None stands for the images as they are."""
    return np.ones((1, num_images), np.int64) if copies is None else np.asarray(copies, np.int64)


def mean_over_classes(
    classes: Sequence[tuple[T, Ints]], copies: Ints, score: Callable[[T, Ints, Ints], Floats], *, chunk: int
) -> Floats:
    """Compute the mean of a score over the classes that a data set shows; 0 for one that shows none.

    Args:
        classes: what is known of each class, and what is true of it in each image, int [images].
        copies: number of copies of each image, int [data sets, images].
        score: of a class, from what is known, copies, and what is true in each data set, int [data sets].
        chunk: data sets that are scored at once.

    Returns:
        The mean, float [data sets].
    """
    result = np.zeros(len(copies))
    for begin in range(0, len(copies), chunk):
        part = copies[begin : begin + chunk]
        total, num_present = np.zeros(len(part)), np.zeros(len(part))
        for known, true_of_image in classes:
            num_true = part @ true_of_image
            total += np.where(num_true > 0, score(known, part, num_true), 0.0)
            num_present += num_true > 0
        result[begin : begin + chunk] = total / np.maximum(num_present, 1)
    return result


def _matched(true: Sequence[Any], detections: Sequence[Mapping[str, Any]]) -> tuple[Floats, Flags, Flags]:
    """Match the detections of one class in one image; return their scores, and what is right and ignored."""
    scores = np.array([float(d["score"]) for d in detections])
    order = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
    right = np.zeros((len(IOU_THRESHOLDS), len(order)), bool)
    ignored = right.copy()
    if true:
        crowd = np.array([i.is_crowd for i in true])
        overlaps = _overlaps([detections[i] for i in order], true)
        for t, threshold in enumerate(IOU_THRESHOLDS):
            free = np.ones(len(true), bool)
            for d, row in enumerate(overlaps):
                best = _best(row, free & ~crowd, threshold)
                if best is not None:
                    right[t, d], free[best] = True, False
                else:
                    ignored[t, d] = _best(row, crowd, threshold) is not None
    return scores[order], right, ignored


def _best(overlaps: Floats, allowed: Flags, threshold: float) -> int | None:
    """Return the allowed instance that is overlapped most, of equal ones the last, as in COCO."""
    values = np.where(allowed, overlaps, -1.0)
    best = len(values) - 1 - int(np.argmax(values[::-1]))
    return best if values[best] >= threshold else None


def _overlaps(detections: Sequence[Mapping[str, Any]], true: Sequence[Any]) -> Floats:
    """Return the mask IoU float [detections, instances]; for a crowd the share of the detection that lies in it."""
    from faster_coco_eval.core import mask as coco_masks

    def coded(size: Sequence[int], counts: str | bytes) -> dict[str, Any]:
        return {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}

    found = [coded(d["segmentation"]["size"], d["segmentation"]["counts"]) for d in detections]
    wanted = [coded(i.rle.size_hw, i.rle.counts) for i in true]
    overlaps: Any = coco_masks.iou(found, wanted, [int(i.is_crowd) for i in true])
    return np.asarray(overlaps, np.float64).reshape(len(found), len(wanted))


def _joined(parts: Sequence[tuple[Floats, Ints, Flags, Flags]], num_true: Ints) -> ClassMatches:
    if not parts:
        nothing = np.zeros((len(IOU_THRESHOLDS), 0), bool)
        return ClassMatches(
            scores=np.zeros(0), image=np.zeros(0, np.int64), right=nothing, ignored=nothing, num_true=num_true
        )
    scores = np.concatenate([part[0] for part in parts])
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(
        scores=scores[order],
        image=np.concatenate([part[1] for part in parts])[order],
        right=np.concatenate([part[2] for part in parts], axis=1)[:, order],
        ignored=np.concatenate([part[3] for part in parts], axis=1)[:, order],
        num_true=num_true,
    )


def _average_precision(matches: ClassMatches, copies: Ints, num_true: Ints) -> Floats:
    """Return COCO's average precision of one class, mean over IoU thresholds, float [data sets].

    Precision at a recall is the highest one at that recall or beyond, and it is highest at right detections. So only
    they are looked at, with the number of detections up to each of them.
    """
    entries, nth_copy = _entries(matches, int(copies.max(initial=0)))
    weights = copies.T[matches.image[entries]].astype(np.float64)  # [entries, data sets]
    alone = nth_copy >= 0
    weights[alone] = weights[alone] > nth_copy[alone, None]
    num_reported = np.cumsum(weights, axis=0)
    total = np.zeros(len(copies))
    for right, ignored in zip(matches.right, matches.ignored, strict=True):
        at = np.flatnonzero(right[entries])
        if not len(at):
            continue
        num_right, reported = np.cumsum(weights[at], axis=0), num_reported[at]
        if ignored.any():
            reported = reported - np.cumsum(weights * ignored[entries, None], axis=0)[at]
        precision = num_right / np.maximum(reported, 1)
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        recalls_passed = np.searchsorted(RECALLS, num_right / np.maximum(num_true, 1), side="right")
        total += (precision * np.diff(recalls_passed, axis=0, prepend=0)).sum(axis=0)
    return total / (len(RECALLS) * len(IOU_THRESHOLDS))


def _entries(matches: ClassMatches, max_copies: int) -> tuple[Ints, Ints]:
    """Return detections in the order of the copied data set, and which copy each is of; -1 stands for all copies.

    All copies of a detection follow each other, and one entry serves them all, except where an image has several
    detections of equal score: these follow each other copy by copy.
    """
    num, scores, image = len(matches.scores), matches.scores, matches.image
    block = np.cumsum(np.r_[True, (scores[1:] != scores[:-1]) | (image[1:] != image[:-1])]) if num else image
    tied = np.bincount(block, minlength=1)[block] > 1
    if not tied.any():
        return np.arange(num), np.full(num, -1)
    times = np.where(tied, max_copies, 1)
    entries = np.repeat(np.arange(num), times)
    nth_copy = np.concatenate([np.arange(n) for n in times]) if num else np.zeros(0, np.int64)
    order = np.lexsort((entries, nth_copy, block[entries]))
    return entries[order], np.where(tied[entries], nth_copy, -1)[order]
