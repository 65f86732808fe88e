"""Implements the forward process of a base's schedule, its targets and its loss weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from defectory.errors import WeightsError


def generator_of(*key: object) -> torch.Generator:
    """Return a CPU generator seeded by a key, which draws the same numbers on every device and in every run."""
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def stratified_timesteps(batch_size: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """Draw one timestep per equal stratum of the range, int64 [B], in random order: uniform, with less variance."""
    offsets = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
    order = torch.randperm(batch_size, generator=generator)
    return (offsets * num_timesteps).long().clamp(max=num_timesteps - 1)[order]


class NoiseSchedule:
    """alpha_bar of a base's scheduler and what its denoiser predicts (`epsilon` or `v_prediction`).

    Raises:
        WeightsError: the scheduler names another prediction type.
    """

    def __init__(self, scheduler: Any, device: torch.device | str) -> None:
        self.prediction_type = str(scheduler.config.get("prediction_type", "epsilon"))
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise WeightsError(
                "scheduler", f"predicts {self.prediction_type}", "give a base that predicts epsilon or v"
            )
        self._config = scheduler.config
        self.alpha_bar = scheduler.alphas_cumprod.to(device).float()
        # the base's scheduler may use another noise convention (Euler), and DDPM's zero-SNR schedule keeps a
        # little signal: so DDPM's arithmetic with the base's schedule
        self._process = DDPMScheduler(num_train_timesteps=len(self.alpha_bar))
        self._process.alphas_cumprod = self.alpha_bar

    @property
    def num_timesteps(self) -> int:
        """Return the number of training timesteps."""
        return len(self.alpha_bar)

    @property
    def device(self) -> torch.device:
        """Return the device that latents must be on."""
        return self.alpha_bar.device

    def times(self, timesteps: Tensor) -> Tensor:
        """Return what the denoiser reads for timesteps int64 [B]: the same."""
        return timesteps

    def add(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute noisy latents and the denoiser's target, both float [B,C,h,w].

            x_t = a x + s e            a^2 = alpha_bar, s^2 = 1 - alpha_bar
            target = e                 epsilon
            target = v = a e - s x     v_prediction (Salimans & Ho 2022, appendix D)

        Args:
            clean: float [B,C,h,w], scaled latents x.
            noise: float [B,C,h,w], e.
            timesteps: int64 [B].
        """
        noisy: Any = self._process.add_noise(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        if self.prediction_type == "epsilon":
            return noisy, noise
        velocity: Any = self._process.get_velocity(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        return noisy, velocity

    def clean(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the clean latents from a prediction, float [B,C,h,w]: the inverse of `add`."""
        alpha = self.alpha_bar[timesteps].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - self.alpha_bar[timesteps]).sqrt().view(-1, 1, 1, 1)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * predicted) / alpha.clamp_min(1e-4)
        return alpha * noisy - sigma * predicted

    def ancestral_timesteps(self, num_steps: int) -> list[int]:
        """Return the timesteps of an ancestral sampler, noisiest first, over a stride of the schedule."""
        stride: Any = DDIMScheduler.from_config(self._config)
        stride.set_timesteps(num_steps)
        return [int(timestep) for timestep in stride.timesteps]

    def ancestral_step(self, x: Tensor, clean: Tensor, noise: Tensor, *, timestep: int, following: int) -> Tensor:
        """Step to a less noisy timestep, float [B,C,h,w]: Ho et al. 2020, algorithm 2 with eq. 6 and 7.

        Args:
            x: float [B,C,h,w], noisy latents.
            clean: float [B,C,h,w], as predicted from them.
            noise: float [B,C,h,w], fresh.
            timestep: of `x`.
            following: of the result.
        """
        bar, bar_next = self.alpha_bar[timestep], self.alpha_bar[following]
        alpha = bar / bar_next
        mean = (bar_next.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - bar_next) * x) / (1 - bar)
        return mean + ((1 - alpha) * (1 - bar_next) / (1 - bar)).sqrt() * noise

    def weight(self, timesteps: Tensor, *, gamma: float | None, floor: float = 0.0) -> Tensor:
        """Compute the loss weight of timesteps, float [B] (min-SNR: Hang et al. 2023, section 3.4).

        min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v; 1 everywhere if gamma is None.

        Args:
            timesteps: int64 [B].
            gamma: upper bound of the SNR.
            floor: lowest weight under v-prediction.
        """
        alpha_bar = self.alpha_bar[timesteps]
        if gamma is None:
            return torch.ones_like(alpha_bar)
        snr = alpha_bar / (1 - alpha_bar).clamp_min(1e-8)
        if self.prediction_type == "v_prediction":
            return (snr.clamp(max=gamma) / (snr + 1)).clamp_min(floor)
        # the limit of the ratio at zero terminal SNR is 1
        return torch.where(snr < gamma, torch.ones_like(snr), gamma / snr.clamp_min(1e-8))
