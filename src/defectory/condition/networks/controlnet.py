"""A ControlNet: a trainable copy of the denoiser's encoder (paper, section 3.2; Zhang et al. 2023).

f(x_t, t, c) + r,   r = control(x_t, t, c, driver)

f    the frozen denoiser
r    maps that are added to its skip connections and its innermost block; zero when training starts from a copy
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel
from torch import Tensor

from defectory.condition.networks.capacity import groups_of, narrow_again, narrowed, widened, without_attention
from defectory.engine.backbones.backbone import Added, Backbone, Context, Residuals, own_control_of
from defectory.engine.backbones.parts import load_controlnet
from defectory.engine.backbones.save import save_model
from defectory.errors import WeightsError


@dataclass(frozen=True)
class ControlNet:
    """diffusers' `ControlNetModel` on a backbone with a UNet, or the control network of the backbone's own family."""

    module: Any
    folder: ClassVar[str] = "controlnet"
    settings: ClassVar[tuple[str, ...]] = ("capacity",)

    @classmethod
    def start(cls, backbone: Backbone, *, init: str, seed: int, capacity: float = 1.0) -> ControlNet:
        """Start from the control network shipped with the base, or from a copy of the base's encoder or part of it."""
        own = own_control_of(backbone)
        if own is None:
            return cls(start_control(backbone, init=init, seed=seed, capacity=capacity))
        if capacity < 1:
            raise WeightsError(
                "condition.capacity", f"{capacity:g}, but this base has no UNet to narrow", "leave it out"
            )
        return cls(own.start(init=init, seed=seed))

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> ControlNet:
        """Load a folder that `save` wrote."""
        own = own_control_of(backbone)
        return cls(narrow_again(load_controlnet(folder, backbone.device)) if own is None else own.load(folder))

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` of the network's class opens."""
        save_model(self.plain_module(), folder)

    def plain_module(self) -> Any:
        """Return the network as plain diffusers opens it, of full width."""
        return widened(self.module) if isinstance(self.module, ControlNetModel) else self.module

    def predict(
        self,
        backbone: Backbone,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        drivers: Tensor,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        """Predict with residuals of the drivers."""
        with self.steer(backbone, latents, timesteps, context, drivers, scale=scale) as residuals:
            return backbone.predict(latents, timesteps, context, residuals=residuals)

    @contextlib.contextmanager
    def steer(
        self,
        backbone: Backbone,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        drivers: Tensor,
        /,
        *,
        scale: float = 1.0,
    ) -> Generator[Added]:
        """Yield residuals of the drivers."""
        control, own = self.module, own_control_of(backbone)
        if own is not None:
            yield own.residuals(control, latents, timesteps, context, drivers, scale=scale)
            return
        skips, middle = control(
            latents,
            timesteps,
            controlnet_cond=drivers,
            conditioning_scale=scale,
            return_dict=False,
            **backbone.conditioning(latents, context),
        )
        yield Residuals(skips=skips, middle=middle)


def start_control(backbone: Backbone, *, init: str, seed: int, capacity: float = 1.0) -> ControlNetModel:
    """Make the initial control network of phase 2, in float32, on the backbone's device.

    Args:
        backbone: adapted.
        init: `copy` of the base's encoder, `embedded` for the one shipped with the base, or `auto`.
        seed: of the new layers in a copy.
        capacity: share of the channels, 0..1; below 1 it has no attention, and is a copy of a part of the encoder.

    Raises:
        WeightsError: `embedded` is set, but the base ships no control network of this capacity.
    """
    if init == "embedded" and capacity < 1:
        raise WeightsError(
            "condition.init", f"embedded, but that network has capacity 1, not {capacity:g}", "set it to copy or auto"
        )
    if init == "embedded" and backbone.controlnet is None:
        raise WeightsError(
            "condition.init", "embedded, but no control network lies beside this base", "set it to copy or auto"
        )
    if backbone.controlnet is not None and init != "copy" and capacity == 1:
        return backbone.controlnet
    widths = (16, 32, 96, 256)
    # one halving per width after the first, so that driver features have the size of the latents
    halvings = backbone.latent_factor.bit_length() - 1
    channels = (*widths[:halvings], 64) if halvings < 3 else (*widths, *(256,) * (halvings - 3))
    denoiser: Any = backbone.denoiser
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control: Any = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=channels)
    if capacity < 1:
        control = narrowed(without_attention(control), groups_of(capacity, int(control.config["norm_num_groups"])))
    return control.to(backbone.device)
