"""Decides by which score segmenters are chosen and judged, from labels of train alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from defectory.artifacts.annotation import Category
from defectory.artifacts.dataset import ImageRecord
from defectory.artifacts.primary_metric import METRIC_NAMES, MetricChoice, PrimaryMetric
from defectory.evaluation.detection import segm_map
from defectory.evaluation.mask_metrics import pixel_ap
from defectory.evaluation.thresholds import best_pixel_threshold, best_score_threshold
from defectory.rle import decode_crop
from defectory.runs.store import RunStore
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.models.registry import DEFAULT, SEGMENTERS

LEAST_MASK_IOU = 0.725
"""Middle of COCO's IoU thresholds .5 to .95. If masks cannot reach it on average, most thresholds are out of reach."""
MASK_RCNN_CELLS = 28
"""Along each side of a box, in every Mask R-CNN here."""
MAX_MASKS = 300
"""More train instances than this say nothing new."""
Results = Sequence[Mapping[str, Any]]
Score = Callable[[Sequence[ImageRecord], Sequence[Category], Results], float]
SCORES: Mapping[PrimaryMetric, Score] = {"segm_map": segm_map, "pixel_ap": pixel_ap}
"""Scores COCO results on whole images."""


def choose_metric(inputs: RunStore, segmentation: SegmentationConfig) -> MetricChoice:
    """Return the metric that is set, or for `auto` the one that can tell segmenters of these defects apart.

    It looks at labels of train, not at any score, so it is the same in every arm.
    """
    if segmentation.primary_metric != "auto":
        return MetricChoice(metric=segmentation.primary_metric)
    from defectory.segmentation.mask_cells import mask_cells_of

    finds_pixels = getattr(SEGMENTERS.get(segmentation.model), "finds_pixels", False)
    num_cells = MASK_RCNN_CELLS if finds_pixels else mask_cells_of(segmentation.model)
    if num_cells is None:
        return MetricChoice()
    best = _best_mask_iou(inputs, num_cells)
    if best is None or best >= LEAST_MASK_IOU:
        return MetricChoice(best_mask_iou=best)
    advice = "" if finds_pixels else f' segmentation.model = "{DEFAULT}" finds pixels instead.'
    why = (
        f"Defects are so thin that a Mask R-CNN's masks of {num_cells} x {num_cells} cells reach a mean IoU of "
        f"{best:.2f} at best, so {METRIC_NAMES['segm_map']} says little and {METRIC_NAMES['pixel_ap']} decides.{advice}"
    )
    return MetricChoice(metric="pixel_ap", best_mask_iou=best, why=why)


def _best_mask_iou(inputs: RunStore, num_cells: int) -> float | None:
    """Return the mean IoU that masks of so many cells reach on the instances of train; None without one."""
    from defectory.segmentation.mask_cells import mean_best_iou

    every = [
        instance
        for image_id in inputs.split.train
        for instance in inputs.data.dataset.image(image_id).instances
        if not instance.is_crowd
    ]
    step = -(-len(every) // MAX_MASKS) or 1
    return mean_best_iou([decode_crop(instance.rle)[0] for instance in every[::step]], num_cells)


def choose_threshold(metric: PrimaryMetric, val: Sequence[ImageRecord], results: Results) -> float:
    """Return the score threshold that is best on validation, by the F1 of defects or of pixels."""
    return best_pixel_threshold(val, results) if metric == "pixel_ap" else best_score_threshold(val, results)
