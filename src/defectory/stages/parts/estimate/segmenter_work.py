"""Reckons the trainings and predictions of segmenters."""

from __future__ import annotations

from dataclasses import replace

from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.policies import AUTO, POLICIES
from defectory.stages.folds import NUM_FOLDS
from defectory.stages.parts.estimate import costs
from defectory.stages.parts.estimate.situation import Situation, StageWork


def folds_work(of: Situation) -> StageWork | None:
    """Reckon the stage folds; None for families of other packages."""
    segmentation = of.config.segmentation
    num_steps = segmentation.fold_steps or segmentation.num_steps
    one = segmenter_work(of, num_steps=num_steps, num_validated=0)
    if one is None:
        return None
    seconds = NUM_FOLDS * one.spread_seconds + 0.05 * of.data.num_defective * of.areas
    return replace(one, spread_seconds=seconds, file_bytes=NUM_FOLDS * one.file_bytes)


def tune_work(of: Situation) -> StageWork | None:
    """Reckon the stage tune; None for families of other packages."""
    segmentation = of.config.segmentation
    num_compared = len(POLICIES.names()) if segmentation.augmentation == AUTO else 0
    steps = num_compared * (segmentation.tuning_num_steps or segmentation.num_steps)
    steps += segmentation.max_num_steps or 0
    steps *= len(segmentation.tuning_seeds)
    one = segmenter_work(of, num_steps=steps, num_validated=val_predictions(of, steps))
    return None if one is None else replace(one, file_bytes=costs.SMALL_FILE_BYTES)


def segment_work(of: Situation) -> StageWork | None:
    """Reckon one stage of the group segment; None for families of other packages."""
    segmentation = of.config.segmentation
    steps = segmentation.max_num_steps or segmentation.num_steps
    num_val = min(of.data.num_val, segmentation.max_val_images)
    return segmenter_work(of, num_steps=steps, num_validated=val_predictions(of, steps), num_val=num_val)


def val_predictions(of: Situation, num_steps: int) -> int:
    """Return the number of images that the validations of a training predict."""
    segmentation = of.config.segmentation
    rounds = -(-num_steps // segmentation.validate_every)
    return rounds * min(of.data.num_val, segmentation.max_val_images)


def segmenter_work(of: Situation, *, num_steps: int, num_validated: int, num_val: int = 0) -> StageWork | None:
    """Reckon a training; None for families of other packages.

    Args:
        of: settings and data.
        num_steps: of the training.
        num_validated: images that its validations predict, all together.
        num_val: images that choose the score threshold.
    """
    segmentation = of.config.segmentation
    cost = _costs_of(segmentation)
    if cost is None:
        return None
    per_image = of.seen_areas
    areas = min(per_image, (segmentation.input_px / costs.REFERENCE_PX) ** 2)
    batch_s = segmentation.batch_size * (cost.tile_s + cost.area_s * areas)
    predicted_s = _predicted_s(segmentation, cost, per_image)
    state = cost.memory_bytes + segmentation.batch_size * (cost.tile_bytes + cost.area_bytes * areas)
    weights = costs.SEGMENTER_FILE_BYTES * cost.num_parameters
    return StageWork(
        spread_seconds=num_steps * (cost.step_s + batch_s)
        + num_validated * predicted_s
        + num_val * (predicted_s + cost.threshold_s)
        + costs.LOADED_S,
        on_device=True,
        memory_bytes=state if of.on_cpu else costs.NETWORK_OVERHEAD_BYTES,
        device_bytes=0 if of.on_cpu else state,
        file_bytes=weights,
        passing_bytes=2 * (2 + costs.MOMENTS["adamw"]) * weights,
    )


def evaluate_work(of: Situation) -> StageWork | None:
    """Reckon the stage evaluate; None for families of other packages."""
    config, data = of.config, of.data
    cost = _costs_of(config.segmentation)
    if cost is None:
        return None
    num_segmenters = len(config.segmentation.arms) * len(config.segmentation.seeds)
    most = config.evaluation.max_kid_tiles
    compared = min(most, data.num_defective) + min(most, data.num_test) + min(most, config.synthesis.num_images)
    predicted_s = _predicted_s(config.segmentation, cost, of.seen_areas)
    return StageWork(
        spread_seconds=num_segmenters * data.num_test * predicted_s + costs.COMPARED_S * compared * of.areas,
        on_device=True,
        memory_bytes=costs.PREDICTION_BYTES,
        file_bytes=costs.SMALL_FILE_BYTES,
    )


def best_segmenter_work(of: Situation) -> StageWork | None:
    """Reckon the stage best-segmenter; None for families of other packages."""
    cost = _costs_of(of.config.segmentation)
    if cost is None:
        return None
    return StageWork(seconds=costs.LOADED_S, file_bytes=costs.SEGMENTER_FILE_BYTES * cost.num_parameters)


def _predicted_s(segmentation: SegmentationConfig, cost: costs.SegmenterCosts, areas: float) -> float:
    """Return the seconds that a predicted image takes."""
    num_views = cost.num_mirrored if segmentation.mirrored else 1
    return num_views * (cost.predicted_s + cost.predicted_area_s * areas)


def _costs_of(segmentation: SegmentationConfig) -> costs.SegmenterCosts | None:
    """Return the costs of the family; None for families of other packages."""
    return costs.SEGMENTERS.get(segmentation.model)
