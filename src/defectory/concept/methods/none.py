"""No concept at all: phase 2 builds on the base as it is (the paper's table 4, "condition only")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from defectory.concept.config import ConceptConfig
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.prompts import condition_prompt


class NoConcept:
    """Trains nothing; the result is a copy of the base."""

    folder: ClassVar[str] = "base"
    preserves_prior: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, *, instance_token: str) -> None:
        self._backbone, self.instance_token = backbone, instance_token
        self.parameters: Mapping[str, nn.Parameter] = {}

    @classmethod
    def start(
        cls,
        backbone: Backbone,
        config: ConceptConfig,  # noqa: ARG003
        *,
        instance_token: str,
        seed: int,  # noqa: ARG003
    ) -> NoConcept:
        """Keep the backbone frozen."""
        return cls(backbone, instance_token=instance_token)

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        """Make the prompt of a tile, the same as in phase 2."""
        return condition_prompt(self.instance_token, class_names, defect_noun=defect_noun, tone=tone)

    def save(self, folder: Path, *, base: Path) -> None:
        """Write a copy of the base."""
        self._backbone.save(folder, like=base, parts=())

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:  # noqa: ARG003
        """Load the base."""
        return load_base(folder, device)
