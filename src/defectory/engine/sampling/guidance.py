"""Guides each step's prediction away from other predictions at the same latents.

    g = h + (W - 1) (p[c, d] - p[c-, d-]) + (w_d - 1) center(q - p[k, -])

    h = u (1 + phi (std(p[c, d]) / std(u) - 1))
    u = p[c, d] + (w_t - 1) (p[c, d] - p[empty, d])

    p[c, d]     the prediction for prompt c and driver d
    c-, d-      prompt and driver without the mask
    k           the class prompt; `-` is no driver. p[k, -] knows neither the part's geometry nor its look
    q           p[c-, d-] where it is known, else p[c, d]
    center(x)   x less its mean over latent pixels: tones are what the prompt says, and a multiple would overdo them
    std(x)      spread over channels and latent pixels
    w_t         `text`, classifier-free guidance (Ho & Salimans 2022, eq. 6)
    phi         `text_rescale`; guidance makes pictures glaring (Lin et al. 2024, eq. 15 and 16)
    w_d         `driver`, at noise levels within `DRIVER_GUIDANCE_INTERVAL`
    W           per latent pixel: s + (w_m - s) min(1, 2 m)
    m           share of the latent pixel that the mask covers
    w_m, s      `mask` and `mask_spill`

The condition network acts in step i of N, from 0, if  i / N >= `control_start`  and  (i + 1) / N <= `control_end`, as
in diffusers. In other steps every prediction is the base's own, without a driver. Further networks act with it in each
prediction p[c, d], in steps of their own; then d is all their drivers.

Guidance by driver and by mask are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from defectory.engine.sampling.models import Given, acts_in_step

DRIVER_GUIDANCE_INTERVAL = (0.2, 0.9)
"""Noise levels, as shares of the training timesteps, between which drivers are guided (Kynkaanniemi et al. 2024);
guiding at all noise levels costs a third more and gives no better images (decision 011).
"""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance weights; 1 means the plain prediction of the networks.

    Attributes:
        text: classifier-free guidance.
        text_rescale: how far the spread of the guided prediction is restored, 0..1.
        control: strength of the condition network.
        control_start: share of the steps before the network acts, 0..1.
        control_end: share of the steps after which it no longer acts, 0..1.
        driver: the part's geometry and look.
        class_prompt: names only the part's class; `driver` guides away from it. None turns driver guidance off.
        mask: the masks, in the samples that have a counterpart without; a number, or float32 [N,H,W] for the first N
            samples, read where masks are painted.
        mask_spill: how much of what a mask does outside itself is kept, 0..1.
    """

    text: float = 1.0
    text_rescale: float = 0.0
    control: float = 1.0
    control_start: float = 0.0
    control_end: float = 1.0
    driver: float = 1.0
    class_prompt: str | None = None
    mask: float | NDArray[np.float32] = 1.0
    mask_spill: float = 1.0

    def steers(self, number: int, num_steps: int) -> bool:
        """Check that the condition network acts in a step, numbered from 0."""
        return acts_in_step(number, num_steps, start=self.control_start, end=self.control_end)


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """Inputs of the other predictions; None if guidance does not need them.

    Attributes:
        empty: the samples with the empty prompt.
        without: the first N samples without their masks.
        class_alone: the samples with the class prompt and no driver.
    """

    empty: Given | None = None
    without: Given | None = None
    class_alone: Given | None = None


Predict = Callable[[Tensor, Tensor, Given], Tensor]
"""Maps latents [B,C,h,w], a timestep and the given conditions to the prediction [B,C,h,w]."""


def guided_prediction(
    predict: Predict,
    x: Tensor,
    timestep: Tensor,
    *,
    given: Given,
    others: Alternatives,
    guidance: Guidance,
    mask_weight: Tensor | None,
    num_timesteps: int,
) -> Tensor:
    """Compute g of the module's equation.

    Args:
        predict: the networks.
        x: latents float [B,C,h,w], scaled for the networks.
        timestep: of all samples.
        given: prompts and drivers of the samples.
        others: inputs of the predictions to guide away from.
        guidance: the weights.
        mask_weight: W - 1, float [N,1,h,w] as from `mask_weight_of`.
        num_timesteps: of the training schedule.
    """
    p = predict(x, timestep, given)
    g = p
    if others.empty is not None:
        g = g + (guidance.text - 1) * (p - predict(x, timestep, others.empty))
        if guidance.text_rescale > 0:
            g = _rescaled(g, like=p, share=guidance.text_rescale)
    first, last = (share * num_timesteps for share in DRIVER_GUIDANCE_INTERVAL)
    class_alone = others.class_alone if first <= float(timestep) <= last else None
    q = p
    if others.without is not None and (mask_weight is not None or class_alone is not None):
        n = len(others.without.context)
        p_without = predict(x[:n], timestep, others.without)
        q = torch.cat([p_without, p[n:]])
        if mask_weight is not None:
            g = g.clone()
            g[:n] += mask_weight * (p[:n] - p_without)
    if class_alone is not None:
        away = q - predict(x, timestep, class_alone)
        g = g + (guidance.driver - 1) * (away - away.mean(dim=(2, 3), keepdim=True))
    return g


def _rescaled(guided: Tensor, *, like: Tensor, share: float) -> Tensor:
    wanted, spread = (values.std(dim=(1, 2, 3), keepdim=True) for values in (like, guided))
    return guided * (1 + share * (wanted / spread - 1))


def mask_weight_of(
    guidance: Guidance, drivers: Tensor | None, without: Tensor | None, *, latent_factor: int
) -> Tensor | None:
    """Compute W - 1 of the module's equation, float [N,1,h,w]; None if masks are not guided.

    Args:
        guidance: `mask` and `mask_spill`.
        drivers: float [B,3K,H,W] with masks.
        without: float [N,3K,H,W], the first N without.
        latent_factor: pixels per latent pixel and side.
    """
    if drivers is None or without is None or not (guidance.mask_spill != 1.0 or np.any(guidance.mask != 1.0)):
        return None
    painted = (drivers[: len(without)] != without).any(dim=1, keepdim=True).float()
    # a thin mask covers half of its latent pixels; weighed by plain coverage it would be drawn half as strongly as a
    # wide one
    share = avg_pool2d(painted, latent_factor)
    strength = torch.as_tensor(guidance.mask, dtype=torch.float32, device=drivers.device)
    if strength.ndim:
        strength = avg_pool2d(strength[:, None] * painted, latent_factor) / share.clamp_min(1e-6)
    spill = guidance.mask_spill
    return spill + (strength - spill) * (2 * share).clamp(max=1) - 1
