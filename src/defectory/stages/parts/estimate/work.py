"""Reckons what each stage has to do: network work, other work, memory, and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from defectory.condition.config import ConditionConfig
from defectory.engine.backbones.workload import BaseWorkload, Workload
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.share import divided
from defectory.runs.stage import Stage
from defectory.stages.parts.estimate import costs
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
from defectory.stages.rounds import Round
from defectory.synthesis.config import num_acting

STAGES_WITH_BASE = ("learn-concept", "learn-condition", "calibrate", "synthesize")
"""Stages whose memory the base decides."""
LEARNED = ("dreambooth", "lora", "textual_inversion", "lora_textual_inversion")
MAX_HELD_OUT = 32
MAX_KID_TRAIN, MAX_KID_POOL = 600, 200
CALIBRATION_LEVELS = 3
GUIDED_SHARE = 0.7
"""Share of the denoising steps in which drivers are guided."""
FEW_TOKENS = 32 * 32
"""Up to so many latent pixels attention is plain on a CPU, and keeps its maps."""
CHUNK_LATENT_PX = {"cpu": 8 * 32 * 32}
DECODED_LATENT_PX_ELSEWHERE, CHUNK_LATENT_PX_ELSEWHERE = 64 * 64, 8 * 64 * 64
"""Latent pixels that are decoded, and that the networks process, at once."""


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
    training, whole = concept.training, base.denoiser
    if concept.train_text_encoder or concept.method != "lora":
        whole += base.text_encoder
    if concept.method == "dreambooth":
        trained = whole if concept.train_text_encoder else base.denoiser
        work = _training(of, training, trained)
    else:
        # of little weight beside the frozen networks that gradients pass through
        share = costs.ADAPTER_SHARE * concept.lora_rank if "lora" in concept.method else 0.0
        trained = Workload(num_parameters=round(share * whole.num_parameters))
        work = _training(of, training, trained, frozen=whole, passed=whole)
    prior = concept.num_class_images if concept.prior_loss_weight > 0 else 0
    latents = _latents(of, base, training)
    drawn = costs.PRIOR * prior * concept.prior_inference_steps * base.denoiser.multiply_adds
    checked = _validation(of, training, base.denoiser)
    kept = of.copied_bytes * (concept.method == "dreambooth") + costs.WEIGHT_BYTES * trained.num_parameters
    return replace(
        work,
        multiply_adds=work.multiply_adds + latents.multiply_adds + drawn + checked,
        file_bytes=kept + costs.LATENT_BYTES * prior * base.latent_values,
        cache_bytes=latents.cache_bytes + costs.LATENT_BYTES * prior * base.latent_values,
    )


def _learn_condition(of: Situation) -> StageWork | None:
    config, base = of.config, of.base
    if base is None or not _copies_encoder(config.condition):
        return None
    training, ours = config.condition.training, config.concept.training
    work = _training(of, training, base.control, frozen=base.denoiser, passed=base.upper)
    shared = (ours.variants_per_image, ours.mixed_precision) == (training.variants_per_image, training.mixed_precision)
    latents = StageWork() if shared else _latents(of, base, training)
    num_drivers = of.data.num_phase_tiles * training.variants_per_image + _held_out(of)
    return replace(
        work,
        multiply_adds=work.multiply_adds
        + latents.multiply_adds
        + _validation(of, training, base.denoiser + base.control),
        seconds=work.seconds + costs.DRIVER_S * num_drivers * of.areas,
        file_bytes=costs.WEIGHT_BYTES * base.control.num_parameters,
        cache_bytes=latents.cache_bytes + costs.DRIVER_CACHE_BYTES * num_drivers * of.tile_px**2,
    )


def _copies_encoder(condition: ConditionConfig) -> bool:
    """Check that the condition network is as large as the base's encoder, whose size is known."""
    return condition.network == "controlnet" and condition.capacity == 1


def _training(
    of: Situation,
    training: TrainingConfig,
    trained: Workload,
    *,
    frozen: Workload | None = None,
    passed: Workload | None = None,
) -> StageWork:
    """Reckon the steps of a phase.

    Args:
        of: settings, data and base.
        training: of the phase.
        trained: networks whose weights train.
        frozen: networks that only run forward.
        passed: the part of the frozen networks that gradients pass through.
    """
    frozen, passed = frozen or Workload(), passed or Workload()
    per_tile = costs.PASSES * trained.multiply_adds + frozen.multiply_adds + passed.multiply_adds
    if training.gradient_checkpointing:
        per_tile *= costs.RECOMPUTED
    tiles = training.num_steps * training.gradient_accumulation_steps * training.batch_size
    steps = costs.MUON * training.num_steps * trained.muon_multiply_adds if training.optimizer == "muon" else 0
    weights = costs.WEIGHT_BYTES * trained.num_parameters
    still = costs.FROZEN_BYTES[training.mixed_precision] * frozen.num_parameters
    together = of.config.training_processes
    _, sharing = divided(training.gradient_accumulation_steps, training.batch_size, together) or (1, 1)
    at_a_time = -(-training.batch_size // sharing)
    batch = at_a_time * _kept_bytes(of, training, trained + passed)
    # weights and gradients; the average, and a copy while it is validated
    averaged, moments = training.ema_decay is not None, costs.MOMENTS[training.optimizer]
    state = (2 + moments + 2 * averaged) * weights + still + batch
    own = costs.NETWORK_OVERHEAD_BYTES + (state if of.on_cpu else weights + still)
    return StageWork(
        multiply_adds=costs.TRAIN * tiles * per_tile + steps,
        seconds=_loaded_s(trained + frozen),
        on_device=True,
        # the process that starts the others holds no network
        memory_bytes=own if together == 1 else together * (costs.PROCESS_BYTES + own),
        device_bytes=0 if of.on_cpu else state,
        # two checkpoints are on disk while the new one replaces the old one
        passing_bytes=2 * (1 + moments + averaged) * weights,
        num_together=together,
        tiles_at_a_time=at_a_time,
    )


def _kept_bytes(of: Situation, training: TrainingConfig, networks: Workload) -> float:
    """Return the bytes that the backward pass of one tile keeps."""
    if training.gradient_checkpointing:
        return costs.ACTIVATION_BYTES * (networks.num_kept + networks.largest_block)
    base = of.base
    is_plain = of.on_cpu and base is not None and base.latent_px <= FEW_TOKENS
    return costs.ACTIVATION_BYTES * networks.num_activations + (costs.SCORE_BYTES * networks.num_scores) * is_plain


def _loaded_s(networks: Workload) -> float:
    return costs.LOADED_S + costs.LOADED_S_PER_PARAMETER * networks.num_parameters


def _held_out(of: Situation) -> int:
    return min(MAX_HELD_OUT, of.data.num_val_tiles)


def _latents(of: Situation, base: BaseWorkload, training: TrainingConfig) -> StageWork:
    count = of.data.num_phase_tiles * training.variants_per_image + _held_out(of)
    return StageWork(
        multiply_adds=costs.ENCODE * count * base.encoder.multiply_adds,
        cache_bytes=costs.LATENT_BYTES * count * base.latent_values,
    )


def _validation(of: Situation, training: TrainingConfig, networks: Workload) -> float:
    rounds = -(-training.num_steps // training.validate_every)
    return costs.DRAW * rounds * _held_out(of) * networks.multiply_adds


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
    folds, drawing = folds_work(of), _drawing(of, _part(of, number), num_halves=2)
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
    work = _drawing(of, num_drafts, num_halves=1)
    return None if work is None else replace(work, file_bytes=0)


def _synthesize(of: Situation) -> StageWork | None:
    return _drawing(of, _part(of, 1), num_halves=2)


def _drawing(of: Situation, num_drafts: int, *, num_halves: int) -> StageWork | None:
    """Reckon drafts.

    Args:
        of: settings, data and base.
        num_drafts: how many.
        num_halves: 2 if each is drawn without its mask too.
    """
    synthesis, base = of.config.synthesis, of.base
    if base is None or not _copies_encoder(of.config.condition) or any(kind != "controlnet" for kind in of.also):
        return None
    guides_mask = synthesis.mask_guidance != 1.0 or synthesis.mask_spill != 1.0
    guides_driver = GUIDED_SHARE if synthesis.driver_guidance > 1.0 else 0.0
    steered = num_halves * (2 if synthesis.guidance_scale > 1.0 else 1) + max(float(guides_mask), guides_driver)
    per_step = (
        steered * (base.denoiser + base.control).multiply_adds
        + guides_driver * num_halves * base.denoiser.multiply_adds
    )
    further = sum(
        num_acting(synthesis.num_inference_steps, start=one.start, end=one.end)
        for one in synthesis.also_controls
        if one.scale > 0
    )
    per_draft = synthesis.num_inference_steps * per_step + num_halves * base.decoder.multiply_adds
    per_draft += further * steered * base.control.multiply_adds
    decoded_px = CHUNK_LATENT_PX["cpu"] if of.on_cpu else DECODED_LATENT_PX_ELSEWHERE
    decoded, drawn = max(1, decoded_px // base.latent_px), max(1, CHUNK_LATENT_PX_ELSEWHERE // base.latent_px)
    drawing, coding = base.denoiser + base.control, base.text_encoder + base.encoder + base.decoder
    for _ in of.also:
        drawing += base.control
    networks = drawing + base.decoder
    weights = costs.FROZEN_BYTES[synthesis.mixed_precision] * drawing.num_parameters
    weights += costs.WEIGHT_BYTES * coding.num_parameters
    # decoding comes after drawing, and the networks' maps are then free again
    while_decoding = costs.DECODED_COPIES * costs.WEIGHT_BYTES * decoded * base.decoder.largest_block
    while_drawing = costs.DRAWN_COPIES * drawn * base.denoiser.largest_block
    state = weights + (while_decoding if of.on_cpu else max(while_decoding, while_drawing))
    return StageWork(
        multiply_adds=costs.DRAW * num_drafts * per_draft,
        seconds=_loaded_s(networks),
        on_device=True,
        memory_bytes=costs.NETWORK_OVERHEAD_BYTES + (state if of.on_cpu else weights),
        device_bytes=0 if of.on_cpu else state,
        file_bytes=costs.DRAFT_FILE_BYTES * num_drafts * of.tile_px**2,
    )


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
    return StageWork(seconds=_loaded_s(parts), memory_bytes=2 * weights, file_bytes=weights)


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
