"""Sampling from latents: noise per sample, control residuals, optional guidance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from torch import Tensor

from defectory.engine.backbones.load import LoadedModels
from defectory.engine.tensors import drivers_to_tensor, images_to_tensor, masks_to_tensor, tensor_to_images
from defectory.errors import ConfigError

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
}


CHUNK_LATENT_PX = {"cpu": 8 * 32 * 32, "cuda": 8 * 64 * 64}
"""Latent pixels the networks see at once."""

DRIVER_GUIDANCE_INTERVAL = (0.2, 0.9)
"""Noise levels, as shares of the training timesteps, between which drivers are guided (Kynkaanniemi et al. 2024);
guiding at all of them costs a third more and draws no better (decision 011).
"""


TIMESTEP_POWER = 2.0
"""Timesteps of dpm-solver lie at this power of even steps: the last steps draw grain, and from even ones it comes out
faint (decision 035).
"""


def make_scheduler(models: LoadedModels, name: str) -> Any:
    """Give a fresh scheduler by name, on the base's own noise schedule; `base` is the one the base names.

    Raises:
        ConfigError: no such name.
    """
    config = dict(models.scheduler.config)
    if name == "base":
        return type(models.scheduler).from_config(config)
    if name not in SCHEDULERS:
        raise ConfigError(
            "synthesis.scheduler", f"{name!r} is not one of base, {', '.join(SCHEDULERS)}", "choose one of them"
        )
    return getattr(diffusers, SCHEDULERS[name]).from_config(config)


def set_timesteps(scheduler: Any, num_steps: int, device: torch.device | str) -> None:
    """Choose a scheduler's timesteps, in place.

    Those of dpm-solver lie at (T - 1) (i / num_steps)^TIMESTEP_POWER of T training timesteps, for i = num_steps to 1,
    rounded; where two fall on one, there are fewer steps. The others' are spaced as the base says.
    """
    if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
        last = scheduler.config["num_train_timesteps"] - 1
        spaced = last * (np.arange(1, num_steps + 1) / num_steps) ** TIMESTEP_POWER
        scheduler.set_timesteps(timesteps=np.unique(spaced.round().astype(int))[::-1].tolist(), device=device)
    else:
        scheduler.set_timesteps(num_steps, device=device)


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


@dataclass(frozen=True, kw_only=True)
class Known:
    """Pictures that stay as they are but for a region: RGB uint8 [H,W,3] per sample, and where to draw, bool [H,W]
    each.
    """

    images: Sequence[np.ndarray]
    regions: Sequence[np.ndarray]


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
    guidance_rescale: float = 0.0,
    control_scale: float = 1.0,
    without: Without | None = None,
    driver_guidance: float = 1.0,
    class_embedding: Tensor | None = None,
    mask_guidance: float | np.ndarray = 1.0,
    mask_spill: float = 1.0,
    known: Known | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> np.ndarray:
    """Draw images.

    Guidance adds to a prediction p its distance from others at the same latents: (guidance_scale - 1) (p - p of the
    empty prompt), as Ho & Salimans 2022; and, ours, (driver_guidance - 1) (q - r), less its mean over latent pixels,
    where q is p, or p without the mask where `without` is given, and r has no driver and the class prompt in place of
    its own, so that it knows neither the part's geometry nor its look; and (w - 1) (p - p without the mask), where w
    goes from `mask_spill` on latent pixels without mask to `mask_guidance` on those that it covers by half or more.

    Args:
        models: base and control network.
        prompt_embeddings: float [B,L,D].
        empty_embedding: float [L,D] of the empty prompt, used when `guidance_scale` > 1.
        drivers: RGB uint8 [H,W,3] per sample, or None for the base alone.
        seeds: one per sample; all noise of a sample comes from its own.
        scheduler_name: as for `make_scheduler`.
        num_steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 is none.
        guidance_rescale: how far the spread of the so guided prediction is brought back to that of p, 0..1, since
            guidance makes pictures glaring (Lin et al. 2024, eq. 15 and 16).
        control_scale: strength of the control network's residuals.
        without: prompts and drivers without masks of the first samples, which `mask_guidance` is for.
        driver_guidance: how strongly the part's geometry and look are drawn; 1 is none.
        class_embedding: float [L,D] of the prompt that knows the part's class alone, which `driver_guidance` leads away
            from; None for no guidance.
        mask_guidance: how strongly masks are drawn; 1 is none. A number, or float32 [N,H,W] for the N samples of
            `without`, read where masks are painted.
        mask_spill: how much of what a mask does outside itself is kept, 0..1; 1 is all.
        known: pictures to draw into: outside their regions latents are theirs, noised to each step's level (Avrahami et
            al. 2022, blended diffusion).
        precision: of the networks; latents stay float32.

    Returns:
        RGB uint8 [B,H,W,3].
    """
    device = prompt_embeddings.device
    scheduler = make_scheduler(models, scheduler_name)
    set_timesteps(scheduler, num_steps, device)
    factor = models.latent_factor
    height, width = drivers[0].shape[:2] if drivers is not None else (models.tile_px, models.tile_px)
    shape = (models.latent_channels, height // factor, width // factor)
    noise = sample_noise(seeds, shape).to(device)
    latents = noise * scheduler.init_noise_sigma
    keep = None if known is None else _Kept(models, known, noise)
    condition = None if drivers is None else drivers_to_tensor(drivers).to(device)
    plain_condition = None if without is None else drivers_to_tensor(without.drivers).to(device)
    # w - 1 of each latent pixel; None where nothing is guided
    mask_weight: Tensor | None = None
    if condition is not None and plain_condition is not None and (mask_spill != 1.0 or np.any(mask_guidance != 1.0)):
        painted = (condition[: len(plain_condition)] != plain_condition).any(dim=1, keepdim=True).float()
        # a thin mask covers half of its latent pixels; weighed by plain coverage it would be drawn half as strongly as
        # a wide one
        share = torch.nn.functional.avg_pool2d(painted, factor)
        strength = torch.as_tensor(mask_guidance, dtype=torch.float32, device=device)
        if strength.ndim:
            strength = torch.nn.functional.avg_pool2d(strength[:, None] * painted, factor) / share.clamp_min(1e-6)
        mask_weight = mask_spill + (strength - mask_spill) * (2 * share).clamp(max=1) - 1
    first, last = (share * models.scheduler.config["num_train_timesteps"] for share in DRIVER_GUIDANCE_INTERVAL)
    generators = [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in seeds]
    # a base may name a scheduler that draws noise at every step
    draws_noise = "generator" in inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": generators} if draws_noise else {}
    predict = _predictor(models, control_scale, precision)
    for number, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        predicted = predict(scaled, timestep, prompt_embeddings, condition)
        guided = predicted
        if guidance_scale > 1.0:
            unguided = predict(scaled, timestep, empty_embedding.expand_as(prompt_embeddings), condition)
            guided = guided + (guidance_scale - 1) * (predicted - unguided)
            if guidance_rescale > 0:
                wanted, spread = (values.std(dim=(1, 2, 3), keepdim=True) for values in (predicted, guided))
                guided = guided * (1 + guidance_rescale * (wanted / spread - 1))
        weak_embedding = class_embedding if driver_guidance != 1.0 and first <= float(timestep) <= last else None
        plain = predicted
        if without is not None and (mask_weight is not None or weak_embedding is not None):
            count = len(without.drivers)
            plain = torch.cat(
                [predict(scaled[:count], timestep, without.prompt_embeddings, plain_condition), predicted[count:]]
            )
            if mask_weight is not None:
                guided = guided.clone()
                guided[:count] += mask_weight * (predicted[:count] - plain[:count])
        if weak_embedding is not None:
            away = plain - predict(scaled, timestep, weak_embedding.to(device).expand_as(prompt_embeddings), None)
            # tones are what the prompt says; a multiple of the distance would overdo them
            guided = guided + (driver_guidance - 1) * (away - away.mean(dim=(2, 3), keepdim=True))
        latents = scheduler.step(guided, timestep, latents, **extra).prev_sample
        if keep is not None:
            latents = keep.put_into(latents, scheduler, number)
    decode: Any = models.vae.decode
    decoded = _in_chunks(
        lambda rows: decode(latents[rows] / models.scaling_factor).sample, len(latents), _chunk_size(latents)
    )
    return tensor_to_images(decoded)


class _Kept:
    """The latents of known pictures, which are put back after every step."""

    def __init__(self, models: LoadedModels, known: Known, noise: Tensor) -> None:
        encode: Any = models.vae.encode
        pixels = images_to_tensor(known.images).to(noise.device)
        clean = _in_chunks(lambda rows: encode(pixels[rows]).latent_dist.mode(), len(pixels), _chunk_size(noise))
        self._clean, self._noise = clean * models.scaling_factor, noise
        regions = masks_to_tensor(known.regions).to(noise.device)
        # a latent pixel is drawn where any of its pixels is
        self._drawn = torch.nn.functional.max_pool2d(regions, models.latent_factor)

    def put_into(self, latents: Tensor, scheduler: Any, number: int) -> Tensor:
        """Give latents after step `number` with the known ones, at the next step's noise, outside the regions."""
        background = self._clean
        if number + 1 < len(scheduler.timesteps):
            background = scheduler.add_noise(
                self._clean, self._noise, scheduler.timesteps[number + 1].expand(len(latents))
            )
        return self._drawn * latents + (1 - self._drawn) * background


def for_sampling(models: LoadedModels) -> LoadedModels:
    """Put a base's networks into the memory format they draw fastest in, in place."""
    parts: list[Any] = [models.unet, models.controlnet]
    for part in parts:
        if part is not None:
            part.to(memory_format=torch.channels_last)
    return models


def _predictor(
    models: LoadedModels, control_scale: float, precision: str
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """Give the function from latents, timestep, embeddings and drivers to the predictions, float32 [B,C,h,w]."""
    unet: Any = models.unet
    control: Any = models.controlnet

    def predict(latents: Tensor, timestep: Tensor, context: Tensor, condition: Tensor | None) -> Tensor:
        def part(rows: Tensor) -> Tensor:
            residuals: dict[str, Any] = {}
            x, embeddings = latents[rows].contiguous(memory_format=torch.channels_last), context[rows]
            with torch.autocast(latents.device.type, torch.bfloat16, enabled=precision == "bf16"):
                if condition is not None:
                    down, mid = control(
                        x,
                        timestep,
                        encoder_hidden_states=embeddings,
                        controlnet_cond=condition[rows],
                        conditioning_scale=control_scale,
                        return_dict=False,
                    )
                    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                return unet(x, timestep, encoder_hidden_states=embeddings, **residuals).sample.float()

        return _in_chunks(part, len(latents), _chunk_size(latents))

    return predict


def _chunk_size(latents: Tensor) -> int:
    pixels = CHUNK_LATENT_PX.get(latents.device.type, CHUNK_LATENT_PX["cuda"])
    return max(1, pixels // (latents.shape[-2] * latents.shape[-1]))


def _in_chunks(part: Callable[[Tensor], Tensor], count: int, size: int) -> Tensor:
    """Join a function's outcomes over chunks of row numbers that all have one size.

    A kernel may round a sample otherwise in a batch of another size, in bf16 visibly so; the last chunk is filled up
    with its last row.
    """
    parts: list[Tensor] = []
    for start in range(0, count, size):
        rows = torch.arange(start, start + size).clamp(max=count - 1)
        parts.append(part(rows)[: min(size, count - start)])
    return torch.cat(parts)
