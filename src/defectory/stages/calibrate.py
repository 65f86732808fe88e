"""Stage calibrate: how strongly the masks of each class are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.calibration import Calibration as CalibrationValue
from defectory.artifacts.calibration import ClassCalibration
from defectory.config.project import ProjectConfig
from defectory.evaluation.contrast import contrasts_by_class, defect_contrast
from defectory.events import Work
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.parts.also_controls import also_key, also_networks, drivers_of
from defectory.stages.parts.drawing_mode import synthesis_of
from defectory.stages.parts.images_used import record_images
from defectory.stages.parts.pool import pool_tiles
from defectory.stages.parts.sampling import sampling_models
from defectory.stages.parts.student import as_drawn, kept_student, student_stage
from defectory.stages.plan import PLAN_SETTINGS

SAMPLER_VERSION = 4
"""Increment this when the same settings draw different images."""


class Calibrate(Stage):
    """Chooses mask guidance per class, so that defects stand out as much as in train tiles."""

    VERSION = 10 + SAMPLER_VERSION
    name, folder = "calibrate", layout.CALIBRATION

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read tiles, both phases, the student if there is one, and the plan."""
        phases = ("learn-concept", "learn-condition", *student_stage(config))
        return ("import", "split", "tiles", *phases, "plan")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on how synthesis draws, and on drivers."""
        return {
            "synthesis": config.synthesis.model_dump(mode="json", exclude={*PLAN_SETTINGS, "rounds", "also_controls"}),
            **also_key(config, sources),
            "drivers": config.drivers.model_dump(mode="json"),
            "files of drivers.drawings": sources.listing(config.drivers.drawings),
            "augmentation": config.augmentation.model_dump(mode="json"),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Draw a few drafts at several levels, and compare their contrast with that of train tiles."""
        tileset, synthesis = inputs.tiles.tileset, synthesis_of(inputs, config)
        digests = {
            "concept_digest": inputs.concept.concept.weights_digest,
            "control_digest": inputs.control.control.weights_digest,
        }
        if synthesis.mask_guidance != "auto":
            fixed = synthesis.mask_guidance
            classes = tuple(
                ClassCalibration(category_id=c.id, name=c.name, mask_guidance=fixed) for c in tileset.categories
            )
            CalibrationValue(classes=classes, **digests).save(out / layout.CALIBRATION_FILE)
            record_images(out, reference=())
            return f"mask guidance {fixed:g} for every class, as set"
        classes = yield from self._measured(inputs, config)
        CalibrationValue(classes=classes, **digests).save(out / layout.CALIBRATION_FILE)
        record_images(out, reference=(tile.image_id for tile in tileset.of("train") if tile.instances))
        return "mask guidance " + ", ".join(f"{c.name} {c.mask_guidance:.2f}" for c in classes)

    def _measured(self, inputs: RunStore, config: ProjectConfig) -> Work[tuple[ClassCalibration, ...]]:
        from defectory.engine.devices import device_of
        from defectory.synthesis.calibrate import CalibrationDraft, calibrate, choose_drafts

        tiles, student = inputs.tiles, kept_student(inputs, config)
        synthesis = as_drawn(synthesis_of(inputs, config), student)
        defective = [tile for tile in tiles.tileset.of("train") if tile.instances]
        inputs.split.require_training_ids((tile.image_id for tile in defective), stage=self.name)
        real = contrasts_by_class(
            (tiles.image(tile), masks_of([i for i in tile.instances if not i.is_crowd])) for tile in defective
        )
        also = also_networks(inputs.sources, config)
        jobs, pool = inputs.plan.jobs, pool_tiles(inputs, config, further=drivers_of(also))
        classes_of_jobs = [[i.category_id for i in job.instances] for job in jobs]
        chosen = choose_drafts(classes_of_jobs, synthesis.calibration_drafts, seed=config.seed)
        drafts: list[CalibrationDraft] = []
        for job in (jobs[number] for number in chosen):
            driver, empty_driver, _ = pool.drivers(job)
            drafts.append(
                CalibrationDraft(
                    instances=tuple(masks_of(job.instances)),
                    driver=driver,
                    empty_driver=empty_driver,
                    prompt=job.prompt,
                    prompt_without=job.prompt_without,
                    seed=job.seed,
                )
            )
        device = device_of(config.device, threads=config.threads)
        return (
            yield from calibrate(
                drafts,
                real=real,
                models=sampling_models(
                    inputs.concept,
                    inputs.control,
                    device,
                    base=config.base,
                    mixed_precision=config.synthesis.mixed_precision,
                    also=also,
                    student=student,
                ),
                class_noun=inputs.concept.concept.class_noun,
                categories=tiles.tileset.categories,
                config=synthesis,
                contrast_of=defect_contrast,
            )
        )
