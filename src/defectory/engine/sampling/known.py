"""Keeps pictures unchanged outside a region while sampling (Avrahami et al. 2022, blended diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import max_pool2d

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.sampling.chunks import chunk_size, in_chunks
from defectory.engine.tensors import images_to_tensor, masks_to_tensor


@dataclass(frozen=True, kw_only=True)
class Known:
    """Pictures RGB uint8 [H,W,3], one per sample, and where to draw on each, bool [H,W]."""

    images: Sequence[np.ndarray]
    regions: Sequence[np.ndarray]


class KnownLatents:
    """The latents of known pictures, which are put back after every step.

    Args:
        backbone: encodes the pictures.
        known: the pictures.
        noise: float [B,C,h,w], of the samples.
    """

    def __init__(self, backbone: Backbone, known: Known, noise: Tensor) -> None:
        pixels = images_to_tensor(known.images).to(noise.device)
        self._clean = in_chunks(lambda rows: backbone.encode_images(pixels[rows]), len(pixels), chunk_size(noise))
        self._noise = noise
        regions = masks_to_tensor(known.regions).to(noise.device)
        # a latent pixel is drawn if any of its pixels is
        self._drawn = max_pool2d(regions, backbone.latent_factor)

    def put_into(self, latents: Tensor, scheduler: Any, number: int) -> Tensor:
        """Replace latents outside the regions after step `number` by the known ones at the next step's noise level."""
        background = self._clean
        if number + 1 < len(scheduler.timesteps):
            background = scheduler.add_noise(
                self._clean, self._noise, scheduler.timesteps[number + 1].expand(len(latents))
            )
        return self._drawn * latents + (1 - self._drawn) * background
