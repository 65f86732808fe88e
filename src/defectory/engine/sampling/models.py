"""Holds the models for sampling: a backbone and the network that steers it by drivers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from defectory.engine.backbones.backbone import Backbone, Context, Steering
from defectory.engine.precision import hold_frozen_in_bf16
from defectory.engine.sampling.chunks import chunk_size, in_chunks


@dataclass(frozen=True, kw_only=True)
class SamplingModels:
    """A backbone and its steering network, which is None for drawing from prompts alone."""

    backbone: Backbone
    network: Steering | None = None

    def in_bf16(self) -> SamplingModels:
        """Hold the networks' matrices in bf16, in place: half the memory, the same results under bf16 autocast."""
        for module in _modules(self.backbone, self.network):
            module.requires_grad_(False)
            hold_frozen_in_bf16(module)
        return self


def for_sampling(backbone: Backbone, network: Steering | None = None) -> SamplingModels:
    """Convert networks in place to the memory format that samples fastest."""
    for module in _modules(backbone, network):
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return SamplingModels(backbone=backbone, network=network)


def _modules(backbone: Backbone, network: Steering | None) -> list[nn.Module]:
    return [backbone.denoiser] if network is None else [backbone.denoiser, network.module]


@dataclass(frozen=True, kw_only=True)
class Given:
    """Conditions of B samples on the device: a context, and drivers float [B,3,H,W] or None."""

    context: Context
    drivers: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predictions without gradients, chunk by chunk.

    Attributes:
        models: backbone and network.
        controlnet_conditioning_scale: strength of the network.
        mixed_precision: `bf16` or `no`.
    """

    models: SamplingModels
    controlnet_conditioning_scale: float
    mixed_precision: str

    def __call__(self, latents: Tensor, timestep: Tensor, given: Given) -> Tensor:
        """Predict for latents [B,C,h,w] at one timestep, float32 [B,C,h,w]."""
        network, drivers = self.models.network, given.drivers
        assert drivers is None or network is not None, "drivers need a network that obeys them"

        def part(rows: Tensor) -> Tensor:
            x = latents[rows].contiguous(memory_format=torch.channels_last)
            context = given.context.select(rows.to(latents.device))
            with torch.autocast(latents.device.type, torch.bfloat16, enabled=self.mixed_precision == "bf16"):
                if network is None or drivers is None:
                    return self.models.backbone.predict(x, timestep, context).float()
                return network.predict(
                    self.models.backbone, x, timestep, context, drivers[rows], scale=self.controlnet_conditioning_scale
                ).float()

        return in_chunks(part, len(latents), chunk_size(latents))

    def unsteered(self, latents: Tensor, timestep: Tensor, given: Given) -> Tensor:
        """Predict from the prompts alone, as the network does at a strength of 0."""
        return self(latents, timestep, replace(given, drivers=None))
