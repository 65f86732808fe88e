"""Stages segment-ARM-seedN: train one segmenter per arm and seed. They open no test image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectory.artifacts.dataset import ImageRecord
from defectory.artifacts.tiles import Tiling
from defectory.config.project import ProjectConfig
from defectory.evaluation.detection import segm_map
from defectory.evaluation.mask_metrics import best_score_threshold
from defectory.events import Work
from defectory.files import write_json
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import DataFolder, RunStore
from defectory.segmentation.arms import ARMS
from defectory.stages.parts.segmenter_tiles import segmentation_tiles, training_tiles
from defectory.stages.parts.synthetic_set import load_synthetic, synthetic_tiles

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationTile

GROUP = "segment"
SEEDS_PER_PROJECT = 10_000


def stage_name(arm: str, seed: int) -> str:
    """Return the name of the stage that trains one segmenter."""
    return f"segment-{arm}-seed{seed}"


def training_seed(project_seed: int, seed: int) -> int:
    """Return the seed of one training, which follows from the project's; no two projects' trainings share one."""
    return project_seed * SEEDS_PER_PROJECT + seed


class Segment(Stage):
    """Trains the segmenter of one arm with one seed, on real and delivered synthetic images.

    Args:
        arm: which data it trains on.
        seed: of the training.
    """

    VERSION = 2
    group = GROUP
    is_resumable = True

    def __init__(self, arm: str, seed: int) -> None:
        self.arm, self.seed = arm, seed
        self.name, self.folder = stage_name(arm, seed), layout.segmenter_folder(arm, seed)

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images, split and tiles, and the synthetic set if the arm trains on it."""
        return ("import", "split", "tiles", *(("export",) if uses_synthetic(self.arm) else ()))

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on how segmenters are trained, on the arm's phases and on the seed."""
        return {
            "segmentation": config.segmentation.of_one_training(),
            "arm": ARMS.get(self.arm).content(),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Train, keep the best checkpoint on real val images, and choose the score threshold on them."""
        from defectory.engine.devices import device_of
        from defectory.engine.training.events import plain
        from defectory.segmentation.training import load_segmenter, record_score_threshold, train_segmenter

        data, split, tileset, segmentation = inputs.data, inputs.split, inputs.tiles.tileset, config.segmentation
        device = device_of(config.device, threads=config.threads)
        defective, pool = training_tiles(inputs, stage=self.name)
        synthetic: list[SegmentationTile] = []
        if uses_synthetic(self.arm):
            images, value_range = load_synthetic(inputs.synthetic), data.dataset.value_range
            synthetic = synthetic_tiles(images, tile_px=tileset.tiling.tile_px, value_range=value_range)
            if not synthetic:
                reason = "curation accepted no draft"
                write_json(out / layout.SKIPPED_FILE, {"reason": reason})
                return f"skipped: {reason}"
        val = _with_few_defect_free([data.dataset.image(i) for i in split.val], segmentation.max_val_images)

        def validate(model: Any) -> float:
            return segm_map(val, data.dataset.categories, predict(model, data, val, tileset.tiling))

        work = train_segmenter(
            arm=self.arm,
            tiles={
                "real": segmentation_tiles(inputs.tiles, defective),
                "synthetic": synthetic,
                "defect_free": segmentation_tiles(inputs.tiles, pool),
            },
            validate=validate,
            categories=data.dataset.categories,
            tiling=tileset.tiling,
            config=segmentation,
            seed=training_seed(config.seed, self.seed),
            out=out,
            device=device,
            value_range=data.dataset.value_range,
            require=lambda ids, what: split.require_training_ids(ids, stage=f"{self.name}, {what}"),
        )
        trained = yield from plain(work)
        threshold = segmentation.score_threshold
        if threshold is None:
            model, _, _ = load_segmenter(out, device)
            threshold = best_score_threshold(val, predict(model, data, val, tileset.tiling))
        record_score_threshold(out, threshold)
        return f"validation segm mAP {trained.best or 0.0:.3f}, score threshold {threshold:.2f}"


def uses_synthetic(arm: str) -> bool:
    """Check whether an arm trains on synthetic images."""
    return "synthetic" in ARMS.get(arm).sources


def predict(model: Any, data: DataFolder, records: Sequence[ImageRecord], tiling: Tiling) -> list[dict[str, object]]:
    """Predict images of the data set, and return COCO results."""
    from defectory.segmentation.predict import coco_results, predict_images

    images: Iterator[tuple[int, Any]] = ((record.id, data.image(record)) for record in records)
    return [row for found in predict_images(model, images, tiling) for row in coco_results(found)]


def _with_few_defect_free(records: Sequence[ImageRecord], limit: int) -> list[ImageRecord]:
    """Return defective val images and at most as many defect-free ones, up to a limit."""
    defective = [r for r in records if r.instances]
    free = [r for r in records if not r.instances]
    chosen = defective[: max(1, limit * 2 // 3)]
    return chosen + free[: min(len(chosen), max(0, limit - len(chosen)))]
