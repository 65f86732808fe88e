"""DreamBooth with prior preservation (paper, section 3.1; Ruiz et al. 2023).

The whole denoiser trains, and the text encoders if that is set. The paper's prompt is `an image of a [V]`; naming
defects is ours (decision 040).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from defectory.concept.config import ConceptConfig
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.prompts import condition_prompt


class DreamBooth:
    """Trains the denoiser itself; the result is a complete base."""

    folder: ClassVar[str] = "base"
    preserves_prior: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, config: ConceptConfig, *, instance_token: str) -> None:
        self._backbone, self.instance_token = backbone, instance_token
        trained = {
            part: network
            for part, network in backbone.networks.items()
            if config.train_text_encoder or network is backbone.denoiser
        }
        for network in trained.values():
            network.requires_grad_(True)
        self._parts = tuple(trained)
        self.parameters = {
            f"{part}.{name}": parameter
            for part, network in trained.items()
            for name, parameter in network.named_parameters()
        }

    @classmethod
    def start(
        cls,
        backbone: Backbone,
        config: ConceptConfig,
        *,
        instance_token: str,
        seed: int,  # noqa: ARG003
    ) -> DreamBooth:
        """Let the backbone's own weights train."""
        return cls(backbone, config, instance_token=instance_token)

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        """Make the prompt of a tile, the same as in phase 2."""
        return condition_prompt(self.instance_token, class_names, defect_noun=defect_noun, tone=tone)

    def save(self, folder: Path, *, base: Path) -> None:
        """Write a copy of the original base with the trained networks."""
        self._backbone.save(folder, like=base, parts=self._parts)

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:  # noqa: ARG003
        """Load the adapted base."""
        return load_base(folder, device)
