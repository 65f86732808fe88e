"""Trains a light segmenter's initial weights, the last part of a pretraining, on the base's own images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.detection import segm_map
from defectory.events import Event, StageEnded, Work
from defectory.pretraining.config import PretrainConfig
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.sizing import OWN_BOXES, Sizing

STAGE = "segmenter"


def run_segmenter_start(config: PretrainConfig, *, work: Path, encoder: Path, out: Path) -> Iterator[Event]:
    """Train a light segmenter's initial weights on procedural images, and write them; resumable.

    Writes fp16 `model.safetensors` and `config.json`.

    Args:
        config: the recipe of the pretraining.
        work: its folder, which holds the corpus; the segmenter's checkpoint and trained weights are written there.
        encoder: folder of the encoder that the family `light` starts from.
        out: folder of the initial weights, replaced.
    """
    from defectory.segmentation.models.family import kept_in_start
    from defectory.segmentation.start import save_start
    from defectory.segmentation.training import is_whole_segmenter

    began, trained = time.monotonic(), work / STAGE
    log = trained / "log.json"  # written last
    if not (log.is_file() and is_whole_segmenter(trained)):
        yield from _train(config, corpus_folder=work / "corpus", encoder=encoder, out=trained)
    save_start(trained, out, without=kept_in_start(config.segmenter.model))
    best = float(json.loads(log.read_text())["best_val_score"])
    yield StageEnded(
        stage=STAGE, seconds=time.monotonic() - began, skipped=False, summary=f"held-out segm mAP {best:.3f}"
    )


def _train(config: PretrainConfig, *, corpus_folder: Path, encoder: Path, out: Path) -> Work[None]:
    from defectory.engine.training.events import plain
    from defectory.pretraining.corpus import make_corpus
    from defectory.segmentation.models.family import kept_in_start
    from defectory.segmentation.predict import coco_results, predict_images
    from defectory.segmentation.start import CLASS_NAME, image_of_class_map, split_images
    from defectory.segmentation.training import train_segmenter

    recipe, categories = config.segmenter, (Category(id=1, name=CLASS_NAME),)
    corpus = make_corpus(
        corpus_folder,
        num_images=config.num_images + config.num_held_out,
        tile_px=config.tile_px,
        seed=config.seed,
        num_workers=config.num_workers,
    )

    def tile(index: int) -> Any:
        return image_of_class_map(f"{index:07d}", corpus.images[index], corpus.class_maps[index])

    held_out = range(config.num_images, len(corpus))
    records = [
        ImageRecord(
            id=index,
            file_name=f"{index:07d}",
            size_hw=(config.tile_px, config.tile_px),
            sha256="",
            group="",
            instances=tuple(Instance(category_id=label, rle=rle) for label, rle in tile(index).instances),
        )
        for index in held_out
    ]
    sizing = Sizing(scale=1.0, input_px=config.tile_px, reason="procedural images")

    def validate(model: Any) -> float:
        found = predict_images(model, ((index, corpus.images[index]) for index in held_out), scale=sizing.scale)
        results = [row for detections in found for row in coco_results(detections)]
        return segm_map(records, categories, results)

    defective, free = split_images([tile(index) for index in range(min(recipe.num_images, config.num_images))])
    segmentation = SegmentationConfig(
        model=recipe.model,
        init="encoder",
        augmentation="flips",
        resampling_threshold=0,
        input_px=config.tile_px,
        num_steps=recipe.num_steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        validate_every=recipe.validate_every,
        checkpoint_every=recipe.checkpoint_every,
        mixed_precision=config.mixed_precision,
    )
    work = train_segmenter(
        arm="real",
        images={"real": defective, "defect_free": free},
        validate=validate,
        categories=categories,
        sizing=sizing,
        boxes=OWN_BOXES,
        config=segmentation,
        seed=config.seed,
        out=out,
        device=config.device,
        encoder=encoder,
        frozen=kept_in_start(recipe.model),
        stage=STAGE,
    )
    yield from plain(work)
