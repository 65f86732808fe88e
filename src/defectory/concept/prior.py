"""Draws class images for prior preservation, once, from the frozen model with an ancestral sampler."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.backbones.prompts import class_prompt
from defectory.engine.config import MixedPrecision
from defectory.engine.precision import autocast, uses_bf16
from defectory.engine.training.cache import read_cached, write_cached
from defectory.engine.training.flow import schedule_of
from defectory.engine.training.noise import generator_of
from defectory.events import Progress, Work
from defectory.files import digest_json

PIXELS_PER_BATCH = 16 * 128 * 128
CLASS_IMAGES = "class_images.safetensors"
"""File of a concept's stage folder: the latents of the class images it was trained with."""


def class_latents(
    backbone: Backbone,
    *,
    class_noun: str,
    size_hw: tuple[int, int],
    num_images: int,
    num_inference_steps: int,
    seed: int,
    base_digest: str,
    mixed_precision: MixedPrecision,
    cache: Path,
) -> Work[Tensor]:
    """Draw the class images, and return them as scaled latents, float16 [N,C,h,w].

    The samples stay latents, since decoding and encoding would blur them. The noise of image i is a function of
    (seed, i).

    Args:
        backbone: frozen.
        class_noun: of the prompt `a [class noun]`.
        size_hw: of the tiles, pixels.
        num_images: how many.
        num_inference_steps: of the sampler.
        seed: of all noise.
        base_digest: digest of the base's folder.
        mixed_precision: of the networks.
        cache: folder of finished batches, named by content; damaged ones are drawn again.
    """
    height, width = (side // backbone.latent_factor for side in size_hw)
    batch_size = max(1, PIXELS_PER_BATCH // (size_hw[0] * size_hw[1]))
    parts: list[Tensor] = []
    for start in range(0, num_images, batch_size):
        indices = range(start, min(start + batch_size, num_images))
        content = [
            base_digest,
            class_noun,
            height,
            width,
            num_inference_steps,
            seed,
            "bf16" if uses_bf16(mixed_precision, backbone.device) else "no",
            indices.start,
            indices.stop,
        ]
        key = digest_json(content)
        path, shape = cache / "class_images" / f"{key}.safetensors", (backbone.latent_channels, height, width)
        stored = read_cached(path, key)
        if stored is None or tuple(stored["latents"].shape) != (len(indices), *shape):
            generators = [generator_of(seed, "class image", index) for index in indices]
            drawn = _ancestral(
                backbone, class_prompt(class_noun), shape, generators, num_inference_steps, mixed_precision
            )
            stored = {"latents": drawn.half().cpu()}
            write_cached(path, key, stored)
        parts.append(stored["latents"])
        yield Progress(done=indices.stop, total=num_images, note="preparing class images")
    return torch.cat(parts)


@torch.no_grad()
def _ancestral(
    backbone: Backbone,
    prompt: str,
    shape: tuple[int, int, int],
    generators: list[torch.Generator],
    num_inference_steps: int,
    mixed_precision: MixedPrecision,
) -> Tensor:
    """Sample ancestrally over a stride of the schedule."""
    device = backbone.device
    schedule = schedule_of(backbone.scheduler, device)
    timesteps = schedule.ancestral_timesteps(num_inference_steps)

    def draw() -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)

    context = encode_prompts(backbone, [prompt] * len(generators))
    x = draw()
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        times = torch.full((len(generators),), timestep, device=device)
        with autocast(mixed_precision, device):
            predicted = backbone.predict(x, schedule.times(times), context)
        clean = schedule.clean(x, predicted.float(), times)
        if following is None:
            return clean
        x = schedule.ancestral_step(x, clean, draw(), timestep=timestep, following=following)
    raise AssertionError("a sampler has at least one step")
