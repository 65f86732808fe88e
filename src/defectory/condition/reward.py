"""A loss that asks for defects under their masks and for nothing elsewhere, read from one denoising step.

    d     = |x[c, d] - x[c-, d-]|, over channels; x is the clean image that one prediction stands for
    p     = d / (d + t)           t: half of the mean of d under the mask, without gradient
    loss  = 1 - (2 sum(p m) + 1) / (sum(p m) + sum(p o) + sum(m) + 1)

    c, d      prompt and driver
    c-, d-    the same without the defect
    m         latent pixels with a defect pixel
    o         latent pixels more than one away from these

It is the soft Dice loss (Milletari et al. 2016) between where an image changes with the mask and the mask: our measure
of fidelity in a form that has a gradient. Rewards on the predicted clean image at low noise are those of ControlNet++
(Li et al. 2024, section 3.3), which reads them with a segmenter. `t` makes the loss blind to how strong a defect is,
which the denoising loss decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from defectory.engine.config import MixedPrecision
from defectory.engine.precision import autocast
from defectory.engine.training.loss import Batch, Counterparts, Denoised
from defectory.engine.training.noise import NoiseSchedule

PredictRows = Callable[[Counterparts, Tensor, Tensor], Tensor]
"""Maps prompts and drivers of B samples, noisy latents [B,C,h,w] and the schedule's times [B] to the prediction
[B,C,h,w].
"""


@dataclass(frozen=True, kw_only=True)
class FidelityReward:
    """The loss of this module.

    Attributes:
        weight: of the loss.
        max_timestep: tiles with less noise than at this timestep get it.
        schedule: of the base.
        predict: the steered network, under the training's precision.
        mixed_precision: of the training.
    """

    weight: float
    max_timestep: int
    schedule: NoiseSchedule
    predict: PredictRows
    mixed_precision: MixedPrecision

    def __call__(self, batch: Batch, denoised: Denoised) -> Tensor:
        """Compute the loss of a batch, a scalar: the sum over the tiles that get it, divided by the batch's size."""
        assert batch.without is not None
        device = denoised.noisy.device
        counts = batch.defect.flatten(1).any(dim=1) & (batch.timesteps < self.max_timestep)
        if not bool(counts.any()):
            return torch.zeros((), device=device)
        rows = counts.nonzero().flatten()
        there = rows.to(device)
        noisy, timesteps, predicted = (
            value.index_select(0, there) for value in (denoised.noisy, denoised.timesteps, denoised.predicted)
        )
        bare = Counterparts(
            prompts=[batch.without.prompts[int(row)] for row in rows], drivers=batch.without.drivers[rows]
        )
        # the image with the mask shall come to equal the one without it, not the other way round
        with torch.no_grad(), autocast(self.mixed_precision, device):
            without = self.predict(bare, noisy, self.schedule.times(timesteps)).float()
        clean = self.schedule.clean(noisy, predicted, timesteps)
        difference = (clean - self.schedule.clean(noisy, without, timesteps)).square().mean(dim=1, keepdim=True)
        losses = dice_losses((difference + 1e-8).sqrt(), batch.defect[rows].to(device))
        return self.weight * losses.sum() / len(batch.timesteps)


def dice_losses(difference: Tensor, defect: Tensor) -> Tensor:
    """Compute the module's loss per member, float [B] in 0..1.

    Args:
        difference: float [B,1,h,w], at least 0.
        defect: bool [B,1,h,w], with a true pixel in each member.
    """
    label = defect.to(difference.dtype)
    beyond = 1 - max_pool2d(label, 3, stride=1, padding=1)
    at = (1, 2, 3)
    under = (difference.detach() * label).sum(dim=at, keepdim=True) / label.sum(dim=at, keepdim=True)
    share = difference / (difference + under / 2)
    hit = (share * label).sum(dim=at)
    return 1 - (2 * hit + 1) / (hit + (share * beyond).sum(dim=at) + label.sum(dim=at) + 1)
