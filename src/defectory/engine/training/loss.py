"""Computes the denoising loss of both phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import max_pool2d

from defectory.engine.precision import autocast
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.noise import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class Counterparts:
    """The members of a batch without their defects.

    Attributes:
        prompts: one per member, naming no defect.
        drivers: uint8 [B,H,W,3], without masks.
    """

    prompts: Sequence[str]
    drivers: Tensor

    def part(self, members: slice) -> Counterparts:
        """Return some of the members."""
        return Counterparts(prompts=self.prompts[members], drivers=self.drivers[members])


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
        without: the members without their defects; None if no loss needs them.
    """

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: Sequence[str]
    defect: Tensor
    drivers: Tensor | None = None
    without: Counterparts | None = None

    def part(self, members: slice) -> Batch:
        """Return some of the members."""
        return Batch(
            clean=self.clean[members],
            noise=self.noise[members],
            timesteps=self.timesteps[members],
            prompts=self.prompts[members],
            defect=self.defect[members],
            drivers=None if self.drivers is None else self.drivers[members],
            without=None if self.without is None else self.without.part(members),
        )


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """What the network made of a batch, on its device.

    Attributes:
        noisy: float [B,C,h,w], what it read.
        timesteps: int64 [B].
        target: float [B,C,h,w].
        predicted: float32 [B,C,h,w].
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    predicted: Tensor


Predict = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents [B,C,h,w] and the schedule's times [B] to the network's prediction [B,C,h,w]."""


def denoise(batch: Batch, predict: Predict, schedule: NoiseSchedule, config: TrainingConfig) -> Denoised:
    """Add a batch's noise and let the network predict, under the configuration's precision.

    Args:
        batch: on any device.
        predict: the network.
        schedule: of the base.
        config: precision.
    """
    device = schedule.device
    clean, noise, timesteps = (x.to(device, non_blocking=True) for x in (batch.clean, batch.noise, batch.timesteps))
    noisy, target = schedule.add(clean, noise, timesteps)
    with autocast(config.mixed_precision, device):
        predicted = predict(noisy, schedule.times(timesteps))
    return Denoised(noisy=noisy, timesteps=timesteps, target=target, predicted=predicted.float())


def denoising_errors(
    batch: Batch, predict: Predict, schedule: NoiseSchedule, config: TrainingConfig, *, weighted: bool = True
) -> Tensor:
    """Compute each member's mean squared error, float [B]; arguments as for `denoise` and `errors_of`."""
    return errors_of(denoise(batch, predict, schedule, config), batch, schedule, config, weighted=weighted)


def errors_of(
    denoised: Denoised, batch: Batch, schedule: NoiseSchedule, config: TrainingConfig, *, weighted: bool = True
) -> Tensor:
    """Compute each member's mean squared error, float [B], weighted for training by default.

    Args:
        denoised: the predictions.
        batch: that they are for.
        schedule: of the base.
        config: min-SNR and defect weight.
        weighted: False for held-out losses, which must not depend on training weights.
    """
    errors = (denoised.predicted - denoised.target).square()
    if not weighted:
        return errors.mean(dim=(1, 2, 3))
    if config.defect_weight != 1:
        side = 2 * config.defect_margin + 1
        near = max_pool2d(batch.defect.to(errors.device).float(), side, stride=1, padding=config.defect_margin)
        errors = errors * (1 + (config.defect_weight - 1) * near)
    return errors.mean(dim=(1, 2, 3)) * schedule.weight(
        denoised.timesteps, gamma=config.min_snr_gamma, floor=config.min_snr_floor
    )
