"""A hypernetwork: it predicts changes of the frozen denoiser's weights from the driver (`plain_hypernetwork.py`)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from defectory.condition.networks import plain_hypernetwork, require_unet
from defectory.condition.networks.plain_hypernetwork import HyperNetwork, projections_of
from defectory.engine.backbones.backbone import Backbone, Context
from defectory.engine.backbones.files import verify_part
from defectory.errors import WeightsError


@dataclass(frozen=True)
class Hypernetwork:
    """A `HyperNetwork` on a backbone whose denoiser is a UNet of diffusers."""

    module: HyperNetwork
    folder: ClassVar[str] = "hypernetwork"
    settings: ClassVar[tuple[str, ...]] = ("hypernetwork_rank",)

    @classmethod
    def start(cls, backbone: Backbone, *, init: str, seed: int, hypernetwork_rank: int = 4) -> Hypernetwork:
        """Start with changes of zero; there is nothing to copy.

        Raises:
            WeightsError: `init` is `embedded`, or the base has no UNet.
        """
        if init == "embedded":
            raise WeightsError("condition.init", "embedded, but no base ships a hypernetwork", "set it to auto")
        require_unet(backbone, "hypernetwork")
        denoiser: Any = backbone.denoiser
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = HyperNetwork(
                projections=projections_of(denoiser),
                block_channels=list(denoiser.config["block_out_channels"]),
                latent_factor=backbone.latent_factor,
                rank=hypernetwork_rank,
            )
        return cls(module.to(backbone.device))

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> Hypernetwork:
        """Load a folder that `save` wrote.

        Raises:
            WeightsError: it cannot be used, or was made for a UNet of other sizes.
        """
        verify_part(folder)
        try:
            module = HyperNetwork.from_folder(folder)
        except (OSError, RuntimeError, TypeError, KeyError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(folder, f"is no hypernetwork ({reason})", "learn the condition again") from error
        if module.config["projections"] != projections_of(backbone.denoiser):
            raise WeightsError(folder, "was made for a UNet of other sizes", "learn the condition again on this base")
        return cls(module.to(backbone.device))

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        self.module.save(folder)

    def save_beside(self, folder: Path) -> None:
        """Write the network with the file that plain diffusers needs to draw with it, `hypernetwork.py`."""
        self.module.to("cpu", torch.float32).save(folder)
        shutil.copyfile(str(plain_hypernetwork.__file__), folder / "hypernetwork.py")

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
        """Predict with weights and maps of the drivers."""
        with self.steer(backbone, latents, timesteps, context, drivers, scale=scale):
            return backbone.predict(latents, timesteps, context)

    @contextlib.contextmanager
    def steer(
        self,
        backbone: Backbone,
        _latents: Tensor,
        _timesteps: Tensor,
        _context: Context,
        drivers: Tensor,
        /,
        *,
        scale: float = 1.0,
    ) -> Generator[None]:
        """Change weights and maps of the denoiser within a `with` block; nothing is left to add."""
        with self.module.steering(backbone.denoiser, drivers, scale=scale):
            yield None
