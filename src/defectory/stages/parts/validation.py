"""Predicts validation images with segmenters in training, and chooses these images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from defectory.artifacts.dataset import ImageRecord
from defectory.runs.store import RunStore
from defectory.runs.stored import DataFolder

SEEDS_PER_PROJECT = 10_000


def training_seed(project_seed: int, seed: int) -> int:
    """Return the seed of one training, which follows from the project's; no two projects' trainings share one."""
    return project_seed * SEEDS_PER_PROJECT + seed


def val_records(inputs: RunStore, limit: int) -> list[ImageRecord]:
    """Return defective val images and at most as many defect-free ones, up to a limit."""
    records = [inputs.data.dataset.image(image_id) for image_id in inputs.split.val]
    defective = [r for r in records if r.instances]
    free = [r for r in records if not r.instances]
    chosen = defective[: max(1, limit * 2 // 3)]
    return chosen + free[: min(len(chosen), max(0, limit - len(chosen)))]


def predict(model: Any, data: DataFolder, records: Sequence[ImageRecord], scale: float) -> list[dict[str, object]]:
    """Predict images of the data set, and return COCO results."""
    from defectory.segmentation.predict import coco_results, predict_images

    images: Iterator[tuple[int, Any]] = ((record.id, data.image(record)) for record in records)
    return [row for found in predict_images(model, images, scale=scale) for row in coco_results(found)]
