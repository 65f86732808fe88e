"""Stage distill: trains a student that draws in a few steps, and keeps it if its drafts are like its teacher's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.distilled import Distilled
from defectory.artifacts.plan import Job
from defectory.artifacts.tiles import Tile, spread
from defectory.config.project import ProjectConfig
from defectory.curation.fidelity import score
from defectory.distillation.compare import detail, distance
from defectory.drivers.extract import driver_maker
from defectory.events import Notice, Progress, Work
from defectory.images.save import save_png
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.runs.stored import DistilledFolder
from defectory.stages.learn_concept import VARIANTS_VERSION
from defectory.stages.learn_condition import DRIVERS_VERSION, driver_digest
from defectory.stages.parts.drawing_mode import synthesis_of
from defectory.stages.parts.drawings import drawings_of
from defectory.stages.parts.phase_tiles import phase_tiles, record_phase_images
from defectory.stages.parts.progress import with_note
from defectory.stages.parts.sampling import load_backbone, sampling_models
from defectory.stages.parts.student import DISTILL, as_drawn, what_differs
from defectory.stages.plan import PLAN_SETTINGS, prompt_of, tone_of
from defectory.synthesis.config import SynthesisConfig

MASK_GUIDANCE = 1.75
"""Mask guidance of the compared drafts where synthesis calibrates it later."""
SHOWN = 8
"""Compared drafts on the contact sheet."""
NOT_DRAWN = PLAN_SETTINGS | {"rounds", "tone_quantile", "calibration_drafts"}
"""Settings of synthesis that neither the student nor the compared drafts depend on."""


class Distill(Stage):
    """Trains a LoRA on the denoiser, and compares its drafts with its teacher's."""

    VERSION = 2000 + 100 * DRIVERS_VERSION + VARIANTS_VERSION
    name, folder = DISTILL, layout.DISTILLED
    is_resumable = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read tiles, split and both phases."""
        return ("import", "split", "tiles", "learn-concept", "learn-condition")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on how the student is trained, on how drafts are drawn and compared, and on drivers."""
        return {
            "distillation": config.distillation.model_dump(mode="json"),
            "synthesis": config.synthesis.model_dump(mode="json", exclude=set(NOT_DRAWN)),
            "curation.difference_threshold": config.curation.difference_threshold,
            "prompts.defect_noun": config.prompts.defect_noun,
            "augmentation": config.augmentation.model_dump(mode="json"),
            "drivers": config.drivers.model_dump(mode="json"),
            "files of drivers.drawings": sources.listing(config.drivers.drawings),
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Train the student, draw with it and with its teacher, compare, and write the outcome."""
        from defectory.engine.training.checkpoint import remove_checkpoint

        weights_digest, note = yield from with_note(_trained(inputs, config, out))
        synthesis, settings = synthesis_of(inputs, config), config.distillation
        learned = Distilled(
            method=settings.method,
            num_inference_steps=settings.num_inference_steps,
            teacher_inference_steps=settings.teacher_inference_steps,
            guidance_scale=synthesis.guidance_scale,
            driver_guidance=synthesis.driver_guidance,
            concept_digest=inputs.concept.concept.weights_digest,
            control_digest=inputs.control.control.weights_digest,
            weights_digest=weights_digest,
            num_drafts=settings.check_drafts,
            teacher_fidelity=0.0,
            student_fidelity=0.0,
            teacher_detail=0.0,
            student_detail=0.0,
            student_distance=0.0,
            untrained_distance=0.0,
            is_kept=False,
        )
        compared, student_folder = _Compared.of(inputs, config), DistilledFolder(distilled=learned, folder=out)
        teacher = yield from _draw(inputs, config, compared, "teacher", None)
        untrained = yield from _draw(inputs, config, compared, "untrained student", student_folder, is_trained=False)
        student = yield from _draw(inputs, config, compared, "student", student_folder)
        value = learned.model_copy(
            update={
                "teacher_fidelity": teacher.fidelity,
                "student_fidelity": student.fidelity,
                "teacher_detail": detail(teacher.images),
                "student_detail": detail(student.images),
                "student_distance": distance(student.images, teacher.images),
                "untrained_distance": distance(untrained.images, teacher.images),
            }
        )
        failures = what_differs(value, settings)
        value = value.model_copy(update={"is_kept": not failures})
        value.save(out / layout.DISTILLED_FILE)
        save_png(out / layout.CONTACT_SHEET, _sheet(teacher, student))
        record_phase_images(inputs, out, reference=(tile.image_id for tile in compared.tiles))
        remove_checkpoint(out / "checkpoint")
        if failures:
            yield Notice(
                text=f"the student is not used: {'; '.join(failures)}; train it longer with "
                "distillation.training.num_steps, or give it more distillation.num_inference_steps"
            )
        figures = f"fidelity {value.student_fidelity:.3f} in {value.num_inference_steps} steps"
        figures += f", {value.teacher_fidelity:.3f} in {synthesis.num_inference_steps}"
        figures += (
            f"; fine detail {value.detail_change:+.1%}; {value.gap_closed:.0%} of the way to the teacher's drafts"
        )
        times = f"{student.seconds:.2f} s per draft instead of {teacher.seconds:.2f} s"
        return f"{'kept' if value.is_kept else 'not kept'}: {figures}; {times}; {note}"


def _trained(inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
    from defectory.condition.load import load_network
    from defectory.distillation.learn import distill
    from defectory.engine.devices import device_of
    from defectory.engine.sampling.models import SamplingModels
    from defectory.synthesis.full import guidance_of

    tiles, held_out = phase_tiles(inputs, drawings_of(inputs, config.drivers))
    num_classes = len(inputs.tiles.tileset.categories)
    concept, make_driver = inputs.concept.concept, driver_maker(num_classes, config.drivers)
    backbone = load_backbone(inputs.concept.folder, device_of(config.device, threads=config.threads), base=config.base)
    return (
        yield from distill(
            tiles,
            models=SamplingModels(backbone=backbone, network=load_network(inputs.control.folder, backbone)),
            guidance=guidance_of(synthesis_of(inputs, config), class_noun=concept.class_noun, mask=1.0),
            config=config.distillation,
            make_driver=make_driver,
            prompt_of=lambda names, tone: prompt_of(
                concept, names, tone if concept.tone_words else "", defect_noun=config.prompts.defect_noun
            ),
            flip=config.augmentation.flip,
            seed=config.seed,
            out=out,
            named={
                "concept": concept.weights_digest,
                "control": inputs.control.control.weights_digest,
                "drivers": driver_digest(config, num_classes),
                "defect_noun": config.prompts.defect_noun,
            },
            held_out=held_out,
            cache=inputs.cache,
        )
    )


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """Drafts that both draw: train tiles, a job for each, and what the drivers are taken from."""

    tiles: Sequence[Tile]
    jobs: Sequence[Job]
    images: Sequence[Any]
    geometries: Sequence[Any]

    @classmethod
    def of(cls, inputs: RunStore, config: ProjectConfig) -> _Compared:
        """Choose train tiles with defects, spread evenly; where these are few, one serves several drafts."""
        concept, noun = inputs.concept.concept, config.prompts.defect_noun
        names = {c.id: c.name for c in inputs.data.dataset.categories}
        defective = [tile for tile in inputs.tiles.tileset.of("train") if masks_of(_labels(tile))]
        inputs.split.require_training_ids((tile.image_id for tile in defective), stage=DISTILL)
        chosen = spread(defective, config.distillation.check_drafts)
        tiles = [chosen[number % len(chosen)] for number in range(config.distillation.check_drafts)]
        images, drawings = [inputs.tiles.image(tile) for tile in tiles], drawings_of(inputs, config.drivers)
        jobs: list[Job] = []
        for number, (tile, image) in enumerate(zip(tiles, images, strict=True)):
            labels, tone = _labels(tile), tone_of(tile, image, concept)
            jobs.append(
                Job(
                    id=f"{number:04d}",
                    tile_id=tile.id,
                    augmentation_seed=None,
                    instances=tuple(labels),
                    mask_sources=(),
                    prompt=prompt_of(concept, [names[i.category_id] for i in labels], tone, defect_noun=noun),
                    prompt_without=prompt_of(concept, (), tone, defect_noun=noun),
                    seed=int(np.random.default_rng([config.seed, 64, number]).integers(2**31)),
                )
            )
        geometries = images if drawings is None else [drawings.of(tile) for tile in tiles]
        return cls(tiles=tiles, jobs=jobs, images=images, geometries=geometries)


def _labels(tile: Tile) -> list[Any]:
    return [instance for instance in tile.instances if not instance.is_crowd]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Drafts of one who draws: mean fidelity, seconds per draft with its half, and the images."""

    fidelity: float
    seconds: float
    images: Sequence[Any]


def _draw(
    inputs: RunStore,
    config: ProjectConfig,
    compared: _Compared,
    who: str,
    student: DistilledFolder | None,
    *,
    is_trained: bool = True,
) -> Work[Drawn]:
    """Draw the compared drafts, each with its counterfactual half, and score them."""
    from defectory.engine.devices import device_of
    from defectory.synthesis.calibrate import guidance_map
    from defectory.synthesis.full import DraftInput, draw_batch

    # train tiles show their defects, and what insertion adds to a dark defect is cut off at black
    whole = synthesis_of(inputs, config).model_copy(update={"mode": "full"})
    synthesis: SynthesisConfig = as_drawn(whole, student)
    categories = inputs.tiles.tileset.categories
    make_driver = driver_maker(len(categories), config.drivers)
    strength = MASK_GUIDANCE if synthesis.mask_guidance == "auto" else synthesis.mask_guidance
    models = sampling_models(
        inputs.concept,
        inputs.control,
        device_of(config.device, threads=config.threads),
        base=config.base,
        mixed_precision=synthesis.mixed_precision,
        student=student,
        is_trained=is_trained,
    )
    fidelities: list[float] = []
    images: list[Any] = []
    seconds = 0.0
    for start in range(0, len(compared.jobs), synthesis.batch_size):
        rows = range(start, min(start + synthesis.batch_size, len(compared.jobs)))
        inputs_of: list[DraftInput] = []
        for row in rows:
            masks, valid_hw = masks_of(compared.jobs[row].instances), compared.tiles[row].valid_hw
            geometry = compared.geometries[row]
            driver = make_driver(geometry, masks, valid_hw)
            inputs_of.append(
                DraftInput(
                    driver=driver,
                    empty_driver=make_driver(geometry, (), valid_hw, [mask for _, mask in masks]),
                    tile=compared.images[row],
                    valid_hw=valid_hw,
                    mask_guidance=guidance_map(
                        masks, dict.fromkeys((c.id for c in categories), strength), driver.shape[:2]
                    ),
                )
            )
        began = time.monotonic()
        pairs = draw_batch(
            [compared.jobs[row] for row in rows],
            inputs_of,
            models=models,
            class_noun=inputs.concept.concept.class_noun,
            config=synthesis,
        )
        seconds += time.monotonic() - began
        for row, (image, without) in zip(rows, pairs, strict=True):
            masks = [mask for _, mask in masks_of(compared.jobs[row].instances)]
            threshold = config.curation.difference_threshold
            fidelities.append(score(image, without, masks, difference_threshold=threshold).iou)
            images.append(image)
        yield Progress(done=rows.stop, total=len(compared.jobs), note=f"drafts of the {who}")
    return Drawn(fidelity=float(np.mean(fidelities)), seconds=seconds / len(compared.jobs), images=images)


def _sheet(teacher: Drawn, student: Drawn) -> Any:
    """Put the teacher's drafts above the student's, RGB uint8."""
    rows = [np.concatenate(spread(drawn.images, SHOWN), axis=1) for drawn in (teacher, student)]
    return np.concatenate(rows, axis=0)
