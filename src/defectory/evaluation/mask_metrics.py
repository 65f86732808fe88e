"""All scores of a segmenter on whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from defectory.artifacts.annotation import Category
from defectory.artifacts.dataset import ImageRecord
from defectory.artifacts.scores import ClassScores, SegmenterScores
from defectory.evaluation.borders import ThinScores, score_thin
from defectory.evaluation.detection import Detection, coco_data_set, score_detection, truth_rows
from defectory.evaluation.match_tables import match_table
from defectory.evaluation.matching import Match, match_instances, without_crowds
from defectory.evaluation.pixels import PixelCounts, PixelScores, count_pixels, score_pixels
from defectory.evaluation.plant import Inspected, inspect, score_plant
from defectory.evaluation.scenes import Region, Scene, check_results, scenes_of
from defectory.evaluation.tables import ScoreTable, score_table

ANY_CLASS = 0
"""Stands for all classes taken as one; category ids begin at 1."""


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
        score_threshold: weaker detections are ignored for all but AP, AR and pixel scores.

    Returns:
        The scores. If no image has a true instance, all are 0 and the Hausdorff distances are 1.

    Raises:
        InputError: as for `check_results`.
    """
    return _scored(images, categories, results, score_threshold)[0]


def score_with_table(
    images: Sequence[ImageRecord],
    categories: Sequence[Category],
    results: Sequence[Mapping[str, Any]],
    *,
    score_threshold: float,
) -> tuple[SegmenterScores, ScoreTable]:
    """Score COCO results as `score_segmenter` does, and keep what is known of each image, in the order of `images`."""
    scores, pixels, inspected = _scored(images, categories, results, score_threshold)
    table = score_table(
        [record.id for record in images],
        matches=match_table(images, categories, results),
        pixels={c: of for c, of in pixels.items() if c != ANY_CLASS},
        inspected=inspected,
        score_threshold=score_threshold,
    )
    return scores, table


def _scored(
    images: Sequence[ImageRecord],
    categories: Sequence[Category],
    results: Sequence[Mapping[str, Any]],
    score_threshold: float,
) -> tuple[SegmenterScores, Mapping[int, Sequence[PixelCounts]], Sequence[Inspected]]:
    check_results(images, results)
    rows: list[dict[str, Any]] = []
    matches: list[Match] = []
    thin: dict[int, list[ThinScores]] = {}
    pixels: dict[int, list[PixelCounts]] = {}
    inspected: list[Inspected] = []
    for scene in scenes_of(images, results):
        kept = [region for region in scene.found if region.score >= score_threshold]
        rows += truth_rows(scene)
        matches += match_instances(scene, kept)
        inspected.append(inspect(scene))
        for category_id, scores in _thin(scene, kept).items():
            thin.setdefault(category_id, []).append(scores)
        for category_id, counts in _pixels(scene, categories).items():
            pixels.setdefault(category_id, []).append(counts)
    truth = coco_data_set(images, categories, rows)
    segm, bbox = (score_detection(truth, categories, results, kind) for kind in ("segm", "bbox"))
    per_pixel = {c: scores for c, of in pixels.items() if (scores := score_pixels(of)) is not None}
    any_class = per_pixel.pop(ANY_CLASS, PixelScores(ap=0.0, f1_max=0.0))
    per_class = {
        c.name: _class_scores(c.id, matches, segm, bbox, per_pixel[c.id], thin[c.id])
        for c in categories
        if c.id in thin and c.id in per_pixel
    }
    every_thin = [scores for of in thin.values() for scores in of]
    scores = SegmenterScores(
        segm_map=segm.map,
        bbox_map=bbox.map,
        ap50=segm.ap50,
        bbox_ap50=bbox.ap50,
        segm_ar100=segm.ar100,
        bbox_ar100=bbox.ar100,
        segm_map_by_size=segm.map_by_size,
        bbox_map_by_size=bbox.map_by_size,
        pixel_ap=_mean([scores.ap for scores in per_pixel.values()]),
        pixel_f1_max=_mean([scores.f1_max for scores in per_pixel.values()]),
        pixel_ap_any_class=any_class.ap,
        pixel_f1_max_any_class=any_class.f1_max,
        **_mask_scores(matches),
        boundary_f1_2px=_mean([scores.boundary_f1_2px for scores in every_thin]),
        cldice=_mean([scores.cldice for scores in every_thin]),
        score_threshold=score_threshold,
        num_instances=len(matches),
        num_predictions=len(results),
        num_predictions_at_threshold=sum(float(result["score"]) >= score_threshold for result in results),
        per_class_segm_map={c.name: segm.per_class[c.id].map for c in categories if c.id in segm.per_class},
        per_class=per_class,
        plant=score_plant(inspected, {c.id: c.name for c in categories}, score_threshold=score_threshold),
    )
    return scores, pixels, inspected


def pixel_ap(
    images: Sequence[ImageRecord], categories: Sequence[Category], results: Sequence[Mapping[str, Any]]
) -> float:
    """Return the mean pixel AP over classes with a defect pixel, and compute nothing else.

    Raises:
        InputError: as for `check_results`.
    """
    check_results(images, results)
    scenes = list(scenes_of(images, results))
    per_class = [score_pixels([_pixels_of(scene, category.id) for scene in scenes]) for category in categories]
    return _mean([scores.ap for scores in per_class if scores is not None])


def _thin(scene: Scene, kept: Sequence[Region]) -> dict[int, ThinScores]:
    """Score borders and skeletons of each class that the image has."""
    counted = without_crowds(scene, kept)
    return {
        category_id: score_thin(_of(scene.true, category_id), _of(counted, category_id))
        for category_id in sorted({region.category_id for region in scene.true})
    }


def _pixels(scene: Scene, categories: Sequence[Category]) -> dict[int, PixelCounts]:
    """Count pixels for each class and for all classes as one."""
    counts = {c.id: _pixels_of(scene, c.id) for c in categories}
    counts[ANY_CLASS] = count_pixels(scene.record.size_hw, scene.true, scene.crowds, scene.found)
    return counts


def _pixels_of(scene: Scene, category_id: int) -> PixelCounts:
    own = (_of(regions, category_id) for regions in (scene.true, scene.crowds, scene.found))
    return count_pixels(scene.record.size_hw, *own)


def _of(regions: Sequence[Region], category_id: int) -> list[Region]:
    return [region for region in regions if region.category_id == category_id]


def _class_scores(
    category_id: int,
    matches: Sequence[Match],
    segm: Detection,
    bbox: Detection,
    pixels: PixelScores,
    thin: Sequence[ThinScores],
) -> ClassScores:
    own = [match for match in matches if match.category_id == category_id]
    return ClassScores(
        num_instances=len(own),
        segm_map=segm.per_class[category_id].map,
        segm_ap50=segm.per_class[category_id].ap50,
        segm_ar100=segm.per_class[category_id].ar100,
        bbox_map=bbox.per_class[category_id].map,
        pixel_ap=pixels.ap,
        pixel_f1_max=pixels.f1_max,
        **_mask_scores(own),
        boundary_f1_2px=_mean([scores.boundary_f1_2px for scores in thin]),
        cldice=_mean([scores.cldice for scores in thin]),
    )


def _mask_scores(matches: Sequence[Match]) -> dict[str, float]:
    """Return the mean scores of masks; a missed instance counts with the scores of a missed one."""
    return {
        "iou": _mean([match.iou for match in matches]),
        "iou_matched": _mean([match.iou for match in matches if match.iou > 0]),
        "dice": _mean([match.dice for match in matches]),
        "hausdorff": _mean([match.hausdorff for match in matches], empty=1.0),
        "hd95": _mean([match.hd95 for match in matches], empty=1.0),
    }


def _mean(values: Sequence[float], *, empty: float = 0.0) -> float:
    return float(np.mean(values)) if values else empty
