"""The last part of a pretraining: the light segmenter's start, on the images the base was made from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.artifacts.tiles import Tiling
from defectory.evaluation.mask_metrics import score_segmenter
from defectory.pipeline.stage import Event, Progress, StageEnded
from defectory.pretraining.config import PretrainConfig
from defectory.segmentation.config import SegmentationConfig

STAGE = "segmenter"


def run_segmenter_start(config: PretrainConfig, *, corpus_folder: Path, encoder: Path, work: Path, out: Path) -> Iterator[Event]:
    """Train the start of the light segmenter on procedural images; resumable, skipped where it is made already.

    Args:
        config: the recipe of the pretraining.
        corpus_folder: its corpus.
        encoder: folder of the encoder the segmenter begins with.
        work: checkpoint and trained segmenter.
        out: start folder.
    """
    from defectory.pretraining.corpus import make_corpus
    from defectory.segmentation.predict import coco_results, predict_images
    from defectory.segmentation.pretraining import START_CATEGORIES, train_start
    from defectory.segmentation.start import tiles_of_class_map

    began, recipe = time.monotonic(), config.segmenter
    if (out / "config.json").is_file():
        yield StageEnded(stage=STAGE, seconds=0.0, skipped=True, summary=str(out))
        return
    corpus = make_corpus(
        corpus_folder,
        num_images=config.num_images + config.num_held_out,
        tile_px=config.tile_px,
        seed=config.seed,
        num_workers=config.num_workers,
    )

    def tile(index: int) -> Any:
        return tiles_of_class_map(f"{index:07d}", corpus.images[index], corpus.class_maps[index])

    held_out = range(config.num_images, len(corpus))
    records = [
        ImageRecord(
            id=index, file_name=f"{index:07d}", size_hw=(config.tile_px, config.tile_px), sha256="", group="",
            instances=tuple(Instance(category_id=label, rle=rle) for label, rle in tile(index).instances),
        )
        for index in held_out
    ]  # fmt: skip
    tiling = Tiling(mode="tile", tile_px=config.tile_px, scale=1.0, reason="procedural images")

    def validate(model: Any) -> float:
        found = predict_images(model, ((index, corpus.images[index]) for index in held_out), tiling)
        results = [row for detections in found for row in coco_results(detections)]
        return score_segmenter(records, START_CATEGORIES, results, score_threshold=0.5).segm_map  # mAP knows no threshold

    best = 0.0
    for event in train_start(
        [tile(index) for index in range(min(recipe.num_images, config.num_images))],
        validate=validate,
        config=SegmentationConfig(
            init="encoder", num_steps=recipe.num_steps, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate,
            validate_every=recipe.validate_every, checkpoint_every=recipe.checkpoint_every, precision=config.precision,
        ),
        tiling=tiling, encoder=encoder, seed=config.seed, work=work, out=out, device=config.device,
    ):  # fmt: skip
        best = max(best, event.val_map or 0.0)
        yield Progress(stage=STAGE, done=event.step, total=event.num_steps, note=f"loss {event.loss:.3f}, best held-out mAP {best:.3f}")
    yield StageEnded(stage=STAGE, seconds=time.monotonic() - began, skipped=False, summary=f"held-out segm mAP {best:.3f}")
