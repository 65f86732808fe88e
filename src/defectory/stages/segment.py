"""Stages segment-ARM-seedN: train one segmenter per arm and seed. They open no test image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectory.config.project import ProjectConfig
from defectory.events import Progress, Work
from defectory.files import write_json
from defectory.masks.perturb import SHAPE_SETTINGS
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.segmentation.arms import ARMS
from defectory.stages.parts.copy_paste import copy_paste_images, procedural_images
from defectory.stages.parts.images_used import record_images
from defectory.stages.parts.primary_metric import SCORES, choose_metric, choose_threshold
from defectory.stages.parts.segmenter_images import made_images, real_images, sizing_of
from defectory.stages.parts.validation import predict, training_seed, val_records
from defectory.stages.tune import as_tuned, needs_tuning

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationImage

GROUP = "segment"
NO_IMAGES = {
    "synthetic": "curation accepted no draft",
    "copy_paste": "no real defect could be pasted",
    "procedural": "no procedural defect could be rendered",
}


def stage_name(arm: str, seed: int) -> str:
    """Return the name of the stage that trains one segmenter."""
    return f"segment-{arm}-seed{seed}"


class Segment(Stage):
    """Trains the segmenter of one arm with one seed, on real and delivered synthetic images.

    Args:
        arm: which data it trains on.
        seed: of the training.
    """

    VERSION = 9
    group = GROUP
    is_resumable = True

    def __init__(self, arm: str, seed: int) -> None:
        self.arm, self.seed = arm, seed
        self.name, self.folder = stage_name(arm, seed), layout.segmenter_folder(arm, seed)

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images and split, the sets that the arm trains on, and what validation chose if it chooses."""
        tuned = ("tune",) if needs_tuning(config.segmentation) else ()
        return ("import", "split", *tuned, *(("export",) if uses_synthetic(self.arm) else ()))

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on how segmenters are trained, on the arm's phases and on the seed."""
        return {
            "segmentation": config.segmentation.of_one_training(),
            "files of segmentation.weights": sources.listing(config.segmentation.weights),
            "arm": ARMS.get(self.arm).content(),
            "seed": config.seed,
            **_making(config, ARMS.get(self.arm).sources),
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Train, keep the best checkpoint on real val images, and choose the score threshold on them."""
        from defectory.engine.devices import device_of
        from defectory.engine.training.events import plain
        from defectory.segmentation.training import load_segmenter, record_score_threshold, train_segmenter

        data, split, segmentation = inputs.data, inputs.split, as_tuned(config.segmentation, inputs)
        device, seed = device_of(config.device, threads=config.threads), training_seed(config.seed, self.seed)
        sizing = sizing_of(inputs, input_px=segmentation.input_px, scale=segmentation.scale)
        yield Progress(done=0, total=segmentation.num_steps, note="loading images")
        real, free = real_images(inputs, sizing, seed=config.seed, stage=self.name)
        images: dict[str, list[SegmentationImage]] = {"real": real, "defect_free": free}
        if uses_synthetic(self.arm):
            images["synthetic"] = made_images(inputs.synthetic, inputs, sizing, seed=config.seed)
        images |= _made_of_real(self.arm, real, free, config)
        for source, reason in NO_IMAGES.items():
            if images.get(source) == []:
                write_json(out / layout.SKIPPED_FILE, {"reason": reason})
                return f"skipped: {reason}"
        val, chosen = val_records(inputs, segmentation.max_val_images), choose_metric(inputs, segmentation)

        def validate(model: Any) -> float:
            return SCORES[chosen.metric](val, data.dataset.categories, predict(model, data, val, sizing.scale))

        weights = segmentation.weights
        work = train_segmenter(
            arm=self.arm,
            images=images,
            validate=validate,
            categories=data.dataset.categories,
            sizing=sizing,
            config=segmentation,
            seed=seed,
            out=out,
            metric=chosen.metric,
            device=device,
            weights=None if weights is None else inputs.sources.path(weights),
            value_range=data.dataset.value_range,
            require=lambda ids, what: split.require_training_ids(ids, stage=f"{self.name}, {what}"),
        )
        trained = yield from plain(work)
        threshold = segmentation.score_threshold
        if threshold is None:
            model, _, _ = load_segmenter(out, device)
            threshold = choose_threshold(chosen.metric, val, predict(model, data, val, sizing.scale))
        record_score_threshold(out, threshold)
        seen_val = [record.id for record in val]
        record_images(out, selection=seen_val, threshold=seen_val if segmentation.score_threshold is None else ())
        seen = f"{segmentation.model}, {sizing.reason}, scale {sizing.scale:.2f}"
        return f"validation {chosen.words} {trained.best or 0.0:.3f}, score threshold {threshold:.2f}; {seen}"


def _making(config: ProjectConfig, sources: Sequence[str]) -> dict[str, object]:
    """Return the settings that an arm's pasted or rendered defects depend on."""
    pasting: dict[str, object] = {"augmentation.flip": config.augmentation.flip} if "copy_paste" in sources else {}
    if "procedural" in sources:
        pasting["masks"] = config.masks.model_dump(mode="json", include=set(SHAPE_SETTINGS))
    return {**pasting, "synthesis.num_images": config.synthesis.num_images} if pasting else {}


def _made_of_real(
    arm: str, real: Sequence[SegmentationImage], free: Sequence[SegmentationImage], config: ProjectConfig
) -> dict[str, list[SegmentationImage]]:
    """Make the images of an arm that need no generator, by source."""
    count, seed, sources = config.synthesis.num_images, config.seed, ARMS.get(arm).sources
    made: dict[str, list[SegmentationImage]] = {}
    if "copy_paste" in sources:
        made["copy_paste"] = copy_paste_images(real, free, count=count, flip=config.augmentation.flip, seed=seed)
    if "procedural" in sources:
        made["procedural"] = procedural_images(real, free, count=count, masks=config.masks, seed=seed)
    return made


def uses_synthetic(arm: str) -> bool:
    """Check whether an arm trains on synthetic images."""
    return "synthetic" in ARMS.get(arm).sources
