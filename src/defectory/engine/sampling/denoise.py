"""Sampling from latents: noise per sample, control residuals, optional guidance."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from defectory.engine.base.load import LoadedModels
from defectory.engine.tensors import drivers_to_tensor, tensor_to_images
from defectory.errors import ConfigError

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
}


def make_scheduler(models: LoadedModels, name: str) -> Any:
    """Give a fresh scheduler by name, on the base's own noise schedule; `base` is the one the base names.

    Raises:
        ConfigError: no such name.
    """
    config = dict(models.scheduler.config)
    if name == "base":
        return type(models.scheduler).from_config(config)
    if name not in SCHEDULERS:
        raise ConfigError("synthesis.scheduler", f"{name!r} is not one of base, {', '.join(SCHEDULERS)}", "choose one of them")
    return getattr(diffusers, SCHEDULERS[name]).from_config(config)


@torch.no_grad()
def encode_prompts(models: LoadedModels, prompts: Sequence[str]) -> Tensor:
    """Give text embeddings float [B,L,D]; each distinct prompt is encoded once."""
    distinct = list(dict.fromkeys(prompts))
    device = next(models.text_encoder.parameters()).device
    rows: dict[str, Tensor] = {}
    for prompt in distinct:
        # one at a time: an embedding must not depend on what else is in the batch
        tokens: Any = models.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
        rows[prompt] = models.text_encoder(input_ids=tokens.input_ids.to(device)).last_hidden_state[0]
    return torch.stack([rows[prompt] for prompt in prompts])


def sample_noise(seeds: Sequence[int], shape_chw: tuple[int, int, int]) -> Tensor:
    """Give standard normal noise float32 [B,C,h,w], each sample from its own seed."""
    return torch.stack([torch.randn(shape_chw, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@dataclass(frozen=True, kw_only=True)
class Without:
    """What samples would be drawn from without their masks: embeddings float [B,L,D] and drivers RGB uint8 [H,W,3]."""

    prompt_embeddings: Tensor
    drivers: Sequence[np.ndarray]


@torch.no_grad()
def denoise(
    models: LoadedModels,
    *,
    prompt_embeddings: Tensor,
    empty_embedding: Tensor,
    drivers: Sequence[np.ndarray] | None,
    seeds: Sequence[int],
    scheduler_name: str,
    num_steps: int,
    guidance_scale: float = 1.0,
    control_scale: float = 1.0,
    without: Without | None = None,
    mask_guidance: float = 1.0,
    mask_spill: float = 1.0,
) -> np.ndarray:
    """Draw images.

    Guidance adds to a prediction p its distance from others at the same latents: (guidance_scale - 1) (p - p of the empty
    prompt), as Ho & Salimans 2022; and (w - 1) (p - p without the mask), ours, where w goes from `mask_spill` on latent
    pixels without mask to `mask_guidance` on those that it covers.

    Args:
        models: base and control network.
        prompt_embeddings: float [B,L,D].
        empty_embedding: float [L,D] of the empty prompt, used when `guidance_scale` > 1.
        drivers: RGB uint8 [H,W,3] per sample, or None for the base alone.
        seeds: one per sample; all noise of a sample comes from its own.
        scheduler_name: as for `make_scheduler`.
        num_steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 is none.
        control_scale: strength of the control network's residuals.
        without: prompts and drivers without masks of the first samples, which `mask_guidance` is for.
        mask_guidance: how strongly masks are drawn; 1 is none.
        mask_spill: how much of what a mask does outside itself is kept, 0..1; 1 is all.

    Returns:
        RGB uint8 [B,H,W,3].
    """
    device = prompt_embeddings.device
    scheduler = make_scheduler(models, scheduler_name)
    scheduler.set_timesteps(num_steps, device=device)
    factor = models.latent_factor
    height, width = drivers[0].shape[:2] if drivers is not None else (models.tile_px, models.tile_px)
    shape = (models.latent_channels, height // factor, width // factor)
    latents = sample_noise(seeds, shape).to(device) * scheduler.init_noise_sigma
    condition = None if drivers is None else drivers_to_tensor(drivers).to(device)
    plain_condition = None if without is None else drivers_to_tensor(without.drivers).to(device)
    # w - 1 of each latent pixel; None where nothing is guided
    mask_weight: Tensor | None = None
    if condition is not None and plain_condition is not None and (mask_guidance, mask_spill) != (1.0, 1.0):
        painted = (condition[: len(plain_condition)] != plain_condition).any(dim=1, keepdim=True).float()
        cover = torch.nn.functional.avg_pool2d(painted, factor)
        mask_weight = mask_spill + (mask_guidance - mask_spill) * cover - 1
    generators = [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in seeds]
    # a base may name a scheduler that draws noise at every step
    draws_noise = "generator" in inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": generators} if draws_noise else {}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        predicted = _predict(models, scaled, timestep, prompt_embeddings, condition, control_scale)
        guided = predicted
        if guidance_scale > 1.0:
            unguided = _predict(models, scaled, timestep, empty_embedding.expand_as(prompt_embeddings), condition, control_scale)
            guided = guided + (guidance_scale - 1) * (predicted - unguided)
        if without is not None and mask_weight is not None:
            count = len(without.drivers)
            plain = _predict(models, scaled[:count], timestep, without.prompt_embeddings, plain_condition, control_scale)
            guided = guided.clone()
            guided[:count] += mask_weight * (predicted[:count] - plain)
        latents = scheduler.step(guided, timestep, latents, **extra).prev_sample
    decoded: Any = models.vae.decode(latents / models.scaling_factor)
    return tensor_to_images(decoded.sample)


def _predict(
    models: LoadedModels, latents: Tensor, timestep: Tensor, context: Tensor, condition: Tensor | None, control_scale: float
) -> Tensor:
    residuals: dict[str, Any] = {}
    if condition is not None:
        control: Any = models.controlnet
        down, mid = control(
            latents, timestep, encoder_hidden_states=context, controlnet_cond=condition, conditioning_scale=control_scale, return_dict=False
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    unet: Any = models.unet
    return unet(latents, timestep, encoder_hidden_states=context, **residuals).sample
