"""A T2I-Adapter: a small network that sees the driver alone (Mou et al. 2023, section 3.3).

f(x_t, t, c; F),   F = adapter(driver)

f    the frozen denoiser, which adds F_i at the end of its i-th encoder block
F    maps that depend neither on x_t nor on t, so that plain diffusers computes them once per image; zero at first

The adapter's share of a training step is small, but gradients pass through the whole denoiser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import T2IAdapter
from torch import Tensor, nn

from defectory.condition.networks import require_unet
from defectory.engine.backbones.backbone import Backbone, Context, Features
from defectory.engine.backbones.parts import load_adapter
from defectory.engine.backbones.save import save_model
from defectory.errors import WeightsError


@dataclass(frozen=True)
class Adapter:
    """diffusers' `T2IAdapter` on a backbone whose denoiser is a `UNet2DConditionModel`."""

    module: T2IAdapter
    folder: ClassVar[str] = "adapter"

    @classmethod
    def start(cls, backbone: Backbone, *, init: str, seed: int) -> Adapter:
        """Start with maps of zeros; there is nothing to copy.

        Raises:
            WeightsError: `init` is `embedded`, or the base's encoder takes no adapter of diffusers.
        """
        if init == "embedded":
            raise WeightsError("condition.init", "embedded, but no base ships an adapter", "set it to auto")
        require_unet(backbone, "adapter")
        return cls(start_adapter(backbone, seed=seed))

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> Adapter:
        """Load a `T2IAdapter` folder."""
        return cls(load_adapter(folder, backbone.device))

    def save(self, folder: Path) -> None:
        """Write a folder that `T2IAdapter.from_pretrained` opens."""
        save_model(self.module, folder)

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
        """Predict with features of the drivers."""
        with self.steer(backbone, latents, timesteps, context, drivers, scale=scale) as features:
            return backbone.predict(latents, timesteps, context, residuals=features)

    @contextlib.contextmanager
    def steer(
        self,
        _backbone: Backbone,
        _latents: Tensor,
        _timesteps: Tensor,
        _context: Context,
        drivers: Tensor,
        /,
        *,
        scale: float = 1.0,
    ) -> Generator[Features]:
        """Yield features of the drivers. An adapter of one channel, such as some public ones, reads the first."""
        config: Any = self.module.config
        features: list[Tensor] = self.module(drivers[:, : config["in_channels"]])
        yield Features(maps=[scale * feature for feature in features])


def start_adapter(backbone: Backbone, *, seed: int) -> T2IAdapter:
    """Make the initial adapter of phase 2, in float32, on the backbone's device.

    Its maps are zero, and its first layer and the last layers of its residual blocks have gradients.

    Args:
        backbone: adapted.
        seed: of its weights.

    Raises:
        WeightsError: the base's encoder takes no adapter of diffusers.
    """
    denoiser: Any = backbone.denoiser
    kind, factor = adapter_kind(list(denoiser.config["down_block_types"]), latent_factor=backbone.latent_factor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter: Any = T2IAdapter(
            channels=list(denoiser.config["block_out_channels"]), downscale_factor=factor, adapter_type=kind
        )
    nn.init.zeros_(adapter.adapter.conv_in.weight)
    nn.init.zeros_(adapter.adapter.conv_in.bias)
    for block in adapter.adapter.body:
        if block.in_conv is not None:
            nn.init.zeros_(block.in_conv.bias)
        for resnet in block.resnets:
            nn.init.zeros_(resnet.block2.weight)
            nn.init.zeros_(resnet.block2.bias)
    return adapter.to(backbone.device)


def adapter_kind(down_block_types: list[str], *, latent_factor: int) -> tuple[str, int]:
    """Choose diffusers' kind of adapter whose maps have the sizes of a UNet's encoder blocks, and its downscale factor.

    Blocks with attention add a map before they halve their sides, blocks without attention afterwards; the last block
    does not halve. Of Stable Diffusion that is `full_adapter`; of the embedded base, as of Stable Diffusion XL,
    `full_adapter_xl`.

    Args:
        down_block_types: as the UNet's configuration names them.
        latent_factor: image pixels per latent pixel and side.

    Raises:
        WeightsError: no kind has these sizes.
    """
    last = len(down_block_types) - 1
    # how often each block's sides have been halved
    wanted = [min(last, i + (kind == "DownBlock2D")) for i, kind in enumerate(down_block_types)]
    if wanted == list(range(last + 1)):
        return "full_adapter", latent_factor
    if wanted == [1 if i < 2 else 2 for i in range(last + 1)]:
        return "full_adapter_xl", 2 * latent_factor
    raise WeightsError(
        "condition.network",
        f"adapter, but no T2I-Adapter fits an encoder of {', '.join(down_block_types)}",
        "set it to controlnet",
    )
