"""Computes the denoising loss of both phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.noise import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch on the CPU.

    Attributes:
        clean: float32 [B,C,h,w], scaled latents.
        noise: float32 [B,C,h,w].
        timesteps: int64 [B].
        prompts: one per member.
        defect: bool [B,1,h,w], latent pixels that contain a defect pixel.
        drivers: uint8 [B,H,W,3]; None in phase 1.
    """

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: Sequence[str]
    defect: Tensor
    drivers: Tensor | None = None


Predict = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents [B,C,h,w] and the schedule's times [B] to the network's prediction [B,C,h,w]."""


def denoising_errors(
    batch: Batch, predict: Predict, schedule: NoiseSchedule, config: TrainingConfig, *, weighted: bool = True
) -> Tensor:
    """Compute each member's mean squared error, float [B], weighted for training by default.

    Args:
        batch: on any device.
        predict: the network.
        schedule: of the base.
        config: min-SNR and defect weight, precision.
        weighted: False for held-out losses, which must not depend on training weights.
    """
    device = schedule.device
    clean, noise, timesteps = (x.to(device, non_blocking=True) for x in (batch.clean, batch.noise, batch.timesteps))
    noisy, target = schedule.add(clean, noise, timesteps)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
        predicted = predict(noisy, schedule.times(timesteps))
    errors = (predicted.float() - target).square()
    if not weighted:
        return errors.mean(dim=(1, 2, 3))
    if config.defect_weight != 1:
        side = 2 * config.defect_margin + 1
        near = max_pool2d(batch.defect.to(device).float(), side, stride=1, padding=config.defect_margin)
        errors = errors * (1 + (config.defect_weight - 1) * near)
    return errors.mean(dim=(1, 2, 3)) * schedule.weight(
        timesteps, gamma=config.min_snr_gamma, floor=config.min_snr_floor
    )
