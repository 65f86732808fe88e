"""Reckons what each stage has to do: network work, other work, memory, and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from defectory.engine.backbones.workload import Workload
from defectory.runs.stage import Stage
from defectory.stages.parts.estimate import costs
from defectory.stages.parts.estimate.distill_work import distill_work
from defectory.stages.parts.estimate.network_work import (
    copies_encoder,
    drawing_work,
    held_out,
    latents_work,
    loaded_s,
    training_work,
    validation_multiply_adds,
)
from defectory.stages.parts.estimate.segmenter_work import (
    best_segmenter_work,
    evaluate_work,
    folds_work,
    segment_work,
    segmenter_work,
    tune_work,
    val_predictions,
)
from defectory.stages.parts.estimate.situation import Situation, StageWork
from defectory.stages.parts.student import expected_synthesis
from defectory.stages.rounds import Round

STAGES_WITH_BASE = ("learn-concept", "learn-condition", "distill", "calibrate", "synthesize")
"""Stages whose memory the base decides."""
LEARNED = ("dreambooth", "lora", "textual_inversion", "lora_textual_inversion")
MAX_KID_TRAIN, MAX_KID_POOL = 600, 200
CALIBRATION_LEVELS = 3


def work_of(stage: Stage, situation: Situation) -> StageWork | None:
    """Reckon what a stage has to do; None for stages, methods and families of other packages.

    Args:
        stage: of the run.
        situation: settings, data and base.
    """
    if isinstance(stage, Round):
        return _round(situation, stage.number)
    return work_of_name(stage.group or stage.name, situation)


def work_of_name(name: str, situation: Situation) -> StageWork | None:
    """Reckon what a stage of this name, or of this group, has to do; None as for `work_of`."""
    reckon = _WORK.get(name)
    return None if reckon is None else reckon(situation)


def _import(of: Situation) -> StageWork:
    data = of.data
    seconds = costs.IMPORTED_S * data.num_images + costs.IMPORTED_S_PER_MP * data.megapixels
    return StageWork(seconds=seconds, file_bytes=data.image_bytes + costs.SMALL_FILE_BYTES)


def _split(of: Situation) -> StageWork:
    data = of.data
    return StageWork(
        seconds=costs.SPLIT_S * data.num_images + costs.SPLIT_S_PER_MP * data.megapixels,
        memory_bytes=costs.SPLIT_BYTES,
        file_bytes=costs.DESCRIPTOR_FILE_BYTES * data.num_images,
    )


def _cut(of: Situation, num_tiles: int, share_of_images: float) -> StageWork:
    return StageWork(
        seconds=costs.TILE_S * num_tiles * of.areas + costs.IMPORTED_S_PER_MP * of.data.megapixels * share_of_images,
        file_bytes=costs.TILE_FILE_BYTES * num_tiles * of.tile_px**2,
    )


def _tiles(of: Situation) -> StageWork:
    data, test = of.data, of.config.split.test_share
    return _cut(of, data.num_defective + data.num_free + data.num_val_tiles, 1 - test)


def _test_tiles(of: Situation) -> StageWork:
    return _cut(of, round(of.data.num_test * max(1.0, of.areas_per_image / of.areas)), of.config.split.test_share)


def _learn_concept(of: Situation) -> StageWork | None:
    concept, base = of.config.concept, of.base
    if base is None or concept.method not in LEARNED:
        return None
    training, whole, together = concept.training, base.denoiser, of.config.training_processes
    if concept.train_text_encoder or concept.method != "lora":
        whole += base.text_encoder
    if concept.method == "dreambooth":
        trained = whole if concept.train_text_encoder else base.denoiser
        work = training_work(of, training, trained, together=together)
    else:
        # of little weight beside the frozen networks that gradients pass through
        share = costs.ADAPTER_SHARE * concept.lora_rank if "lora" in concept.method else 0.0
        trained = Workload(num_parameters=round(share * whole.num_parameters))
        work = training_work(of, training, trained, frozen=whole, passed=whole, together=together)
    prior = concept.num_class_images if concept.prior_loss_weight > 0 else 0
    latents = latents_work(of, base, training)
    drawn = costs.PRIOR * prior * concept.prior_inference_steps * base.denoiser.multiply_adds
    checked = validation_multiply_adds(of, training, base.denoiser)
    kept = of.copied_bytes * (concept.method == "dreambooth") + costs.WEIGHT_BYTES * trained.num_parameters
    return replace(
        work,
        multiply_adds=work.multiply_adds + latents.multiply_adds + drawn + checked,
        file_bytes=kept + costs.LATENT_BYTES * prior * base.latent_values,
        cache_bytes=latents.cache_bytes + costs.LATENT_BYTES * prior * base.latent_values,
    )


def _learn_condition(of: Situation) -> StageWork | None:
    config, base = of.config, of.base
    if base is None or not copies_encoder(config.condition):
        return None
    training, ours = config.condition.training, config.concept.training
    work = training_work(
        of, training, base.control, frozen=base.denoiser, passed=base.upper, together=of.config.training_processes
    )
    shared = (ours.variants_per_image, ours.mixed_precision) == (training.variants_per_image, training.mixed_precision)
    latents = StageWork() if shared else latents_work(of, base, training)
    num_drivers = of.data.num_phase_tiles * training.variants_per_image + held_out(of)
    return replace(
        work,
        multiply_adds=work.multiply_adds
        + latents.multiply_adds
        + validation_multiply_adds(of, training, base.denoiser + base.control),
        seconds=work.seconds + costs.DRIVER_S * num_drivers * of.areas,
        file_bytes=costs.WEIGHT_BYTES * base.control.num_parameters,
        cache_bytes=latents.cache_bytes + costs.DRIVER_CACHE_BYTES * num_drivers * of.tile_px**2,
    )


def _learn_masks(of: Situation) -> StageWork:
    diffusion = of.config.masks.diffusion
    step_s = costs.MASK_STEP_S * diffusion.batch_size / costs.MASK_STEP_BATCH
    return StageWork(
        seconds=costs.MASK_MODEL_S * of.data.num_masks,
        spread_seconds=diffusion.num_steps * step_s,
        memory_bytes=costs.PREDICTION_BYTES,
        file_bytes=costs.SMALL_FILE_BYTES,
    )


def _round(of: Situation, number: int) -> StageWork | None:
    """Reckon a further round: segmenters for validation and of each fold, then plan, drafts and curation."""
    segmentation = of.config.segmentation
    num_steps = segmentation.fold_steps or segmentation.num_steps
    num_compared = 2 if number == 2 else 1
    one = segmenter_work(
        of, num_steps=num_compared * num_steps, num_validated=num_compared * val_predictions(of, num_steps)
    )
    folds, drawing = folds_work(of), drawing_work(of, expected_synthesis(of.config), _part(of, number), num_halves=2)
    if one is None or folds is None or drawing is None:
        return None
    curation = _curate(of, number)
    steps = (one, folds, drawing, curation, _plan(of, number))
    return replace(
        drawing,
        seconds=sum(step.seconds for step in steps),
        spread_seconds=sum(step.spread_seconds for step in steps),
        memory_bytes=max(step.memory_bytes for step in steps),
        device_bytes=max(step.device_bytes for step in steps),
        # weights are removed once they have been scored
        file_bytes=drawing.file_bytes + curation.file_bytes,
        passing_bytes=one.passing_bytes + folds.file_bytes + drawing.file_bytes,
    )


def _part(of: Situation, number: int) -> int:
    """Return the drafts of one round."""
    return of.config.synthesis.of_round(number).num_images


def _plan(of: Situation, number: int = 1) -> StageWork:
    shares = of.config.masks.sources.shares()
    drawn = shares.get("diffusion", 0.0) / sum(shares.values())
    per_draft = costs.PLANNED_S + costs.DIFFUSION_MASK_S * drawn
    return StageWork(
        seconds=costs.BANK_S * of.data.num_masks + per_draft * _part(of, number), file_bytes=costs.SMALL_FILE_BYTES
    )


def _calibrate(of: Situation) -> StageWork | None:
    synthesis = of.config.synthesis
    if synthesis.mask_guidance != "auto":
        return StageWork()
    num_drafts = min(synthesis.calibration_drafts, _part(of, 1)) * CALIBRATION_LEVELS
    work = drawing_work(of, expected_synthesis(of.config), num_drafts, num_halves=1)
    return None if work is None else replace(work, file_bytes=0)


def _synthesize(of: Situation) -> StageWork | None:
    return drawing_work(of, expected_synthesis(of.config), _part(of, 1), num_halves=2)


def _curate(of: Situation, number: int = 1) -> StageWork:
    data, fits = of.data, bool(of.config.curation.checks)
    num_real = min(MAX_KID_TRAIN, data.num_defective) + min(MAX_KID_POOL, data.num_free)
    real_s = costs.REAL_TILE_S * num_real * fits
    return StageWork(
        spread_seconds=(real_s + costs.CURATED_S * _part(of, number)) * of.areas,
        memory_bytes=costs.CURATION_BYTES,
        file_bytes=costs.SMALL_FILE_BYTES,
    )


def _export(of: Situation) -> StageWork:
    # `auto` is decided by the tiles, which are not known yet: reckon with images that hold one draft each
    synthesis, num_images = of.config.synthesis, of.config.synthesis.num_images
    whole = synthesis.mode == "insert" or (synthesis.mode == "auto" and of.config.tiling.mode != "frame")
    per_image = max(of.areas_per_image, of.areas) if whole else of.areas
    return StageWork(
        seconds=costs.EXPORTED_S * num_images * per_image,
        file_bytes=costs.TILE_FILE_BYTES * num_images * per_image * costs.REFERENCE_PX**2,
    )


def _finalize(of: Situation) -> StageWork | None:
    base = of.base
    if base is None:
        return None
    parts = base.denoiser + base.control + base.text_encoder + base.encoder + base.decoder
    for _ in of.also:
        parts += base.control
    weights = costs.WEIGHT_BYTES * parts.num_parameters
    return StageWork(seconds=loaded_s(parts), memory_bytes=2 * weights, file_bytes=weights)


def _certify(of: Situation) -> StageWork:
    """Read every image file, and search for near-duplicates as the split does, whose descriptors are there."""
    split = _split(of)
    return replace(split, seconds=costs.CERTIFIED_SHARE * split.seconds, file_bytes=costs.SMALL_FILE_BYTES)


def _report(of: Situation) -> StageWork:
    shown = of.data.num_defective + of.config.synthesis.num_images
    return StageWork(
        spread_seconds=costs.REPORTED_S * shown * of.areas,
        memory_bytes=costs.REPORT_BYTES,
        file_bytes=costs.SMALL_FILE_BYTES,
    )


_WORK: Mapping[str, Callable[[Situation], StageWork | None]] = {
    "import": _import,
    "split": _split,
    "tiles": _tiles,
    "learn-concept": _learn_concept,
    "learn-condition": _learn_condition,
    "distill": distill_work,
    "folds": folds_work,
    "learn-masks": _learn_masks,
    "plan": _plan,
    "calibrate": _calibrate,
    "synthesize": _synthesize,
    "curate": _curate,
    "export": _export,
    "finalize": _finalize,
    "tune": tune_work,
    "segment": segment_work,
    "test-tiles": _test_tiles,
    "evaluate": evaluate_work,
    "certify": _certify,
    "best-segmenter": best_segmenter_work,
    "report": _report,
}
"""By name of the stage, or of its group."""
