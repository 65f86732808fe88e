"""Holds the models for sampling: a backbone and the networks that steer it by drivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defectory.engine.backbones.backbone import Backbone, Context, Steering
from defectory.engine.backbones.steering import Combinable, Share, predict_steered
from defectory.engine.config import MixedPrecision
from defectory.engine.precision import autocast, hold_frozen_in_bf16
from defectory.engine.sampling.chunks import chunk_size, in_chunks


def acts_in_step(number: int, num_steps: int, *, start: float, end: float) -> bool:
    """Check that a network acts in a step, numbered from 0, of `num_steps`: as in diffusers, in whole steps alone.

    Args:
        number: of the step.
        num_steps: of them all.
        start: share of the steps before the network acts.
        end: share of the steps after which it no longer acts.
    """
    return number / num_steps >= start and (number + 1) / num_steps <= end


@dataclass(frozen=True, kw_only=True)
class FurtherNetwork:
    """A network that steers beside a run's own, with drivers of its own.

    Attributes:
        network: that adds to the others.
        scale: strength; 0 leaves it out.
        start: share of the steps before it acts, 0..1.
        end: share of the steps after which it no longer acts, 0..1.
    """

    network: Combinable
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def scale_at(self, number: int, num_steps: int) -> float | None:
        """Return the strength in a step, numbered from 0; None if the network is left out."""
        acts = self.scale != 0 and acts_in_step(number, num_steps, start=self.start, end=self.end)
        return self.scale if acts else None


@dataclass(frozen=True, kw_only=True)
class SamplingModels:
    """A backbone and the networks that steer it.

    Attributes:
        backbone: adapted.
        network: the run's own; None for drawing from prompts alone.
        further: networks that steer beside it.
    """

    backbone: Backbone
    network: Steering | None = None
    further: tuple[FurtherNetwork, ...] = ()

    @property
    def networks(self) -> tuple[Steering, ...]:
        """Return all networks in the order of their drivers' channels."""
        return (*(() if self.network is None else (self.network,)), *(of.network for of in self.further))

    def in_bf16(self) -> SamplingModels:
        """Hold the networks' matrices in bf16, in place: half the memory, the same results under bf16 autocast."""
        for module in _modules(self):
            module.requires_grad_(False)
            hold_frozen_in_bf16(module)
        return self


def for_sampling(
    backbone: Backbone, network: Steering | None = None, *, further: Sequence[FurtherNetwork] = ()
) -> SamplingModels:
    """Convert networks in place to the memory format that samples fastest."""
    models = SamplingModels(backbone=backbone, network=network, further=tuple(further))
    for module in _modules(models):
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return models


def _modules(models: SamplingModels) -> list[nn.Module]:
    return [models.backbone.denoiser, *(network.module for network in models.networks)]


@dataclass(frozen=True, kw_only=True)
class Given:
    """Conditions of B samples on the device: a context, and drivers or None.

    Drivers are float [B,3K,H,W], three channels for each of K networks.
    """

    context: Context
    drivers: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predictions of one step without gradients, chunk by chunk.

    Attributes:
        models: backbone and networks.
        scales: strength of each network; None leaves it out.
        mixed_precision: of the networks.
    """

    models: SamplingModels
    scales: tuple[float | None, ...]
    mixed_precision: MixedPrecision

    def __call__(self, latents: Tensor, timestep: Tensor, given: Given) -> Tensor:
        """Predict for latents [B,C,h,w] at one timestep, float32 [B,C,h,w]."""
        backbone, networks, drivers = self.models.backbone, self.models.networks, given.drivers
        assert drivers is None or drivers.shape[1] == 3 * len(networks), "each network reads three channels of drivers"

        def shares(rows: Tensor) -> list[Share]:
            if drivers is None:
                return []
            read = drivers[rows]
            own = [read] if len(networks) == 1 else [part.contiguous() for part in read.split(3, dim=1)]
            return [
                Share(network=network, drivers=part, scale=scale)
                for network, part, scale in zip(networks, own, self.scales, strict=True)
                if scale is not None
            ]

        def part(rows: Tensor) -> Tensor:
            x = latents[rows].contiguous(memory_format=torch.channels_last)
            context = given.context.select(rows.to(latents.device))
            with autocast(self.mixed_precision, latents.device):
                acting = shares(rows)
                if not acting:
                    return backbone.predict(x, timestep, context).float()
                return predict_steered(backbone, x, timestep, context, acting).float()

        return in_chunks(part, len(latents), chunk_size(latents))
