"""Runs what all bases with a `UNet2DConditionModel` and an `AutoencoderKL` share, whatever their text encoders."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call

from defectory.engine.backbones.backbone import Added, Context
from defectory.engine.backbones.latent import LatentBackbone
from defectory.engine.backbones.parts import load_controlnet


@dataclass(frozen=True, kw_only=True)
class UNetBackbone(LatentBackbone, ABC):
    """A base in memory, without its text encoders. `controlnet` and `folder` may be None."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None = None

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """Return the UNet."""
        return self.unet

    @property
    def size_multiple_px(self) -> int:
        """Return the number that tile sides must be divisible by, pixels."""
        return self.latent_factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        *,
        residuals: Added | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict noise or velocity, float [B,C,h,w]."""
        given = dict(self.conditioning(latents, context))
        if residuals is not None:
            given |= residuals.denoiser_arguments()
        unet: Any = self.unet
        if weights is not None:
            return functional_call(unet, _under_adapters(unet, weights), args=(latents, timesteps), kwargs=given).sample
        return unet(latents, timesteps, **given).sample


def _under_adapters(unet: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of layers that have adapters of peft, which hold the layer itself as `base_layer`."""
    known, renamed = dict(unet.named_parameters()), dict[str, Tensor]()
    for name, weight in weights.items():
        layer, _, last = name.rpartition(".")
        inner = f"{layer}.base_layer.{last}"
        renamed[inner if name not in known and inner in known else name] = weight
    return renamed


def controlnet_beside(folder: Path, device: torch.device | str, dtype: torch.dtype) -> ControlNetModel | None:
    """Load the control network that lies beside a base, if any.

    Raises:
        WeightsError: it cannot be loaded.
    """
    beside = folder / "controlnet"
    return load_controlnet(beside, device, dtype) if beside.is_dir() else None
