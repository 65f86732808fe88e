"""Reckons the stage distill: a teacher that draws, a student that trains, and drafts of both."""

from __future__ import annotations

from dataclasses import replace

from defectory.engine.backbones.workload import Workload
from defectory.stages.parts.estimate import costs
from defectory.stages.parts.estimate.network_work import (
    GUIDED_SHARE,
    copies_encoder,
    drawing_work,
    latents_work,
    training_work,
)
from defectory.stages.parts.estimate.situation import Situation, StageWork
from defectory.stages.parts.student import expected_synthesis


def distill_work(of: Situation) -> StageWork | None:
    """Reckon the stage distill; None if nothing is distilled, or the networks' size is not known."""
    settings, synthesis, base = of.config.distillation, of.config.synthesis, of.base
    if not settings.enabled or base is None or not copies_encoder(of.config.condition):
        return None
    training, steered = settings.training, base.denoiser + base.control
    # half of the tiles have a mask, and are guided from the tile without
    guides = GUIDED_SHARE if synthesis.driver_guidance > 1 else 0.0
    one_step = (1 + (synthesis.guidance_scale > 1) + guides / 2) * steered.multiply_adds
    one_step += guides * base.denoiser.multiply_adds
    if settings.method == "consistency":
        taught = one_step + steered.multiply_adds
    else:
        taught = -(-settings.teacher_inference_steps // settings.num_inference_steps) * one_step
    adapters = Workload(num_parameters=round(costs.STUDENT_SHARE * settings.lora_rank * base.denoiser.num_parameters))
    work = training_work(of, training, adapters, frozen=steered, passed=base.denoiser)
    tiles = training.num_steps * training.gradient_accumulation_steps * training.batch_size
    latents, ours = latents_work(of, base, training), of.config.condition.training
    shared = (ours.variants_per_image, ours.mixed_precision) == (training.variants_per_image, training.mixed_precision)
    num_drivers = of.data.num_phase_tiles * training.variants_per_image * (1 if shared else 2)
    few_steps = expected_synthesis(of.config)
    compared = [
        # the student draws before and after its training
        drawing_work(of, drawn, settings.check_drafts, num_halves=2)
        for drawn in (synthesis, few_steps, few_steps)
    ]
    drawn_multiply_adds = sum(drafts.multiply_adds for drafts in compared if drafts is not None)
    return replace(
        work,
        multiply_adds=work.multiply_adds
        + costs.TRAIN * tiles * taught
        + drawn_multiply_adds
        + (0 if shared else latents.multiply_adds),
        seconds=work.seconds + costs.DRIVER_S * num_drivers * of.areas,
        file_bytes=costs.WEIGHT_BYTES * adapters.num_parameters,
        cache_bytes=(0 if shared else latents.cache_bytes) + costs.DRIVER_CACHE_BYTES * num_drivers * of.tile_px**2,
    )
