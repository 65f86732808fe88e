"""Implements flow matching as one more kind of noise schedule (Esser et al. 2024, section 2 and 3.1).

    x_t = (1 - sigma) x + sigma e
    target = e - x                                  what diffusers' Euler step multiplies by the step in sigma
    sigma = s u / (1 + (s - 1) u),  u = (t + 1) / T

    x    clean latents
    e    noise
    t    timestep, 0..T-1
    s    shift of the base's scheduler; more than 1 spends more timesteps at high noise

A timestep counts in the loss as often as logit-normal sampling would draw it:

    w(u) = exp(-logit(u)^2 / 2) / (u (1 - u)), divided by its mean over all timesteps
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from defectory.engine.backbones.facts import FLOW
from defectory.engine.training.noise import NoiseSchedule


def is_flow(scheduler: Any) -> bool:
    """Check whether a base's scheduler is one of flow matching."""
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler)


def schedule_of(scheduler: Any, device: torch.device | str) -> NoiseSchedule:
    """Return the noise schedule of a base's scheduler.

    Raises:
        WeightsError: the scheduler names a prediction type that is not supported.
    """
    return FlowSchedule(scheduler, device) if is_flow(scheduler) else NoiseSchedule(scheduler, device)


class FlowSchedule(NoiseSchedule):
    """sigma of each timestep, and the arithmetic of the module's equations."""

    def __init__(self, scheduler: Any, device: torch.device | str) -> None:
        self.prediction_type = FLOW
        # a fresh one, since `set_timesteps` replaces the table; it begins with the noisiest
        table: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        self.sigma: Tensor = table.sigmas.flip(0).to(device).float()
        self.alpha_bar = (1 - self.sigma).square()
        middle = (torch.arange(len(self.sigma), dtype=torch.float64) + 0.5) / len(self.sigma)
        density = torch.exp(-middle.logit().square() / 2) / (middle * (1 - middle))
        self._weights = (density / density.mean()).float().to(device)

    def times(self, timesteps: Tensor) -> Tensor:
        """Return what the denoiser reads for timesteps int64 [B]: float [B], T sigma."""
        return self.sigma[timesteps.to(self.device)] * self.num_timesteps

    def add(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute noisy latents and the denoiser's target, both float [B,C,h,w]."""
        sigma = self._sigma(timesteps)
        return (1 - sigma) * clean + sigma * noise, noise - clean

    def clean(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the clean latents from a prediction, float [B,C,h,w]: the inverse of `add`."""
        return noisy - self._sigma(timesteps) * predicted

    def ancestral_timesteps(self, num_steps: int) -> list[int]:
        """Return timesteps at even distances, from pure noise down."""
        last = self.num_timesteps - 1
        return [round(last - number * self.num_timesteps / num_steps) for number in range(num_steps)]

    def ancestral_step(self, x: Tensor, clean: Tensor, noise: Tensor, *, timestep: int, following: int) -> Tensor:
        """Step to a less noisy timestep, float [B,C,h,w]: the posterior of a Markov chain with these marginals.

            x_s = a_(t|s) (s_s / s_t)^2 x_t + (a_s v / s_t^2) x + s_s sqrt(v) / s_t e
            a_(t|s) = a_t / a_s,  v = s_t^2 - a_(t|s)^2 s_s^2   (Kingma et al. 2021, appendix A)

        with a = 1 - sigma and s = sigma.
        """
        s, s_next = self.sigma[timestep], self.sigma[following]
        a, a_next = 1 - s, 1 - s_next
        ratio = a / a_next
        variance = s.square() - ratio.square() * s_next.square()
        mean = (ratio * s_next.square() * x + a_next * variance * clean) / s.square()
        return mean + s_next * variance.sqrt() / s * noise

    def weight(self, timesteps: Tensor, *, gamma: float | None, floor: float = 0.0) -> Tensor:  # noqa: ARG002
        """Return the loss weight of timesteps, float [B]: w(u) of the module; 1 everywhere if gamma is None.

        Args:
            timesteps: int64 [B].
            gamma: any number turns weighting on.
            floor: not used.
        """
        return torch.ones_like(self._weights[timesteps]) if gamma is None else self._weights[timesteps]

    def _sigma(self, timesteps: Tensor) -> Tensor:
        return self.sigma[timesteps].view(-1, 1, 1, 1)
