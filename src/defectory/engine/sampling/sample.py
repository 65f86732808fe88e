"""Draws images from one noise stream per sample, guided predictions and the scheduler's steps."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.config import MixedPrecision
from defectory.engine.sampling.chunks import DECODED_LATENT_PX, chunk_size, in_chunks
from defectory.engine.sampling.guidance import Alternatives, Guidance, guided_prediction, mask_weight_of
from defectory.engine.sampling.known import Known, KnownLatents
from defectory.engine.sampling.models import Given, Predictor, SamplingModels
from defectory.engine.sampling.schedulers import make_scheduler, set_timesteps
from defectory.engine.tensors import drivers_to_tensor, tensor_to_images


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions of samples: a prompt and a driver each; no drivers for prompts alone.

    A driver is RGB uint8 [H,W,3], and [H,W,3K] for K networks, in their order.
    """

    prompts: Sequence[str]
    drivers: Sequence[np.ndarray] | None = None

    def on(self, backbone: Backbone) -> Given:
        """Convert them for the networks."""
        drivers = None if self.drivers is None else drivers_to_tensor(self.drivers).to(backbone.device)
        return Given(context=encode_prompts(backbone, self.prompts), drivers=drivers)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How samples are drawn.

    Attributes:
        scheduler: as for `make_scheduler`.
        num_inference_steps: denoising steps.
        mixed_precision: of the networks; latents stay float32.
    """

    scheduler: str
    num_inference_steps: int
    mixed_precision: MixedPrecision = "no"


def sample_noise(seeds: Sequence[int], shape_chw: tuple[int, int, int]) -> Tensor:
    """Draw standard normal noise float32 [B,C,h,w], each sample from its own seed."""
    return torch.stack([torch.randn(shape_chw, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample_images(
    models: SamplingModels,
    conditions: Conditions,
    *,
    seeds: Sequence[int],
    sampler: Sampler,
    guidance: Guidance | None = None,
    without: Conditions | None = None,
    known: Known | None = None,
) -> np.ndarray:
    """Draw images, RGB uint8 [B,H,W,3]: as large as the drivers, or the base's native tiles.

    Args:
        models: backbone and condition networks.
        conditions: prompts and drivers of B samples.
        seeds: one per sample, for all of its noise.
        sampler: scheduler, steps, precision.
        guidance: how strongly prompts, drivers and masks are drawn.
        without: the first samples' prompts and drivers without their masks, which `guidance` needs for masks.
        known: pictures to draw into; they stay unchanged outside their regions.
    """
    backbone, guidance = models.backbone, guidance or Guidance()
    given = conditions.on(backbone)
    others = _alternatives(backbone, conditions, given, guidance, without)
    without_drivers = None if others.without is None else others.without.drivers
    mask_weight = mask_weight_of(guidance, given.drivers, without_drivers, latent_factor=backbone.latent_factor)
    num_timesteps = backbone.scheduler.config["num_train_timesteps"]

    scheduler = make_scheduler(backbone, sampler.scheduler)
    set_timesteps(scheduler, sampler.num_inference_steps, backbone.device)
    noise = sample_noise(seeds, _latent_shape(backbone, given)).to(backbone.device)
    latents = noise * scheduler.init_noise_sigma
    kept = None if known is None else KnownLatents(backbone, known, noise)
    step_noise = _step_noise(scheduler, seeds)
    for number, timestep in enumerate(scheduler.timesteps):
        scales = _scales(models, guidance, number, len(scheduler.timesteps))
        g = guided_prediction(
            Predictor(models=models, scales=scales, mixed_precision=sampler.mixed_precision),
            scheduler.scale_model_input(latents, timestep),
            timestep,
            given=given,
            others=others,
            guidance=guidance,
            mask_weight=mask_weight,
            num_timesteps=num_timesteps,
        )
        latents = scheduler.step(g, timestep, latents, **step_noise).prev_sample
        if kept is not None:
            latents = kept.put_into(latents, scheduler, number)
    size = chunk_size(latents, DECODED_LATENT_PX)
    decoded = in_chunks(lambda rows: backbone.decode_latents(latents[rows]), len(latents), size)
    return tensor_to_images(decoded)


def _scales(models: SamplingModels, guidance: Guidance, number: int, num_steps: int) -> tuple[float | None, ...]:
    """Return the strength of each network in a step, numbered from 0; None for those that do not act."""
    own = guidance.control if guidance.steers(number, num_steps) else None
    return (*(() if models.network is None else (own,)), *(of.scale_at(number, num_steps) for of in models.further))


def _alternatives(
    backbone: Backbone, conditions: Conditions, given: Given, guidance: Guidance, without: Conditions | None
) -> Alternatives:
    """Encode the conditions that guidance needs besides the samples' own; none if all guidance is 1."""
    count = len(conditions.prompts)
    empty = class_alone = None
    if guidance.text > 1.0:
        empty = Given(context=encode_prompts(backbone, [""] * count), drivers=given.drivers)
    if guidance.driver != 1.0 and guidance.class_prompt is not None:
        class_alone = Given(context=encode_prompts(backbone, [guidance.class_prompt] * count), drivers=None)
    counterparts = None if without is None else without.on(backbone)
    return Alternatives(empty=empty, without=counterparts, class_alone=class_alone)


def _latent_shape(backbone: Backbone, given: Given) -> tuple[int, int, int]:
    height, width = (backbone.tile_px,) * 2 if given.drivers is None else given.drivers.shape[-2:]
    return backbone.latent_channels, height // backbone.latent_factor, width // backbone.latent_factor


def _step_noise(scheduler: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the argument that seeds a scheduler with noise at every step, which a base may name."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in seeds]}
