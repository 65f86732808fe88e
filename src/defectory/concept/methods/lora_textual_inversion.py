"""LoRA and Textual Inversion together: a new token for the part, and adapters that draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from defectory.concept.config import ConceptConfig
from defectory.concept.methods.lora import save_adapters, start_adapters
from defectory.concept.methods.textual_inversion import save_vectors, start_vectors
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.lora import DIFFUSERS_NAME, merge_lora
from defectory.engine.backbones.new_tokens import add_learned_tokens, new_token
from defectory.engine.backbones.prompts import condition_prompt


class LoRATextualInversion:
    """Trains adapters and the vectors of a new token, each with its learning rate."""

    folder: ClassVar[str] = "adapters"
    preserves_prior: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, config: ConceptConfig, *, instance_token: str, seed: int) -> None:
        self._backbone, self.instance_token = backbone, new_token(instance_token)
        # adapters first, since peft freezes everything else
        adapters = start_adapters(backbone, config, seed=seed)
        vectors = start_vectors(backbone, config, token=self.instance_token)
        self.parameters = {**adapters, **vectors}
        self.learning_rates: Mapping[str, float] = {
            **dict.fromkeys(adapters, config.lora_learning_rate),
            **dict.fromkeys(vectors, config.embedding_learning_rate),
        }

    @classmethod
    def start(
        cls, backbone: Backbone, config: ConceptConfig, *, instance_token: str, seed: int
    ) -> LoRATextualInversion:
        """Add adapters, which change nothing yet, and a token."""
        return cls(backbone, config, instance_token=instance_token, seed=seed)

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        """Make the prompt of a tile, the same as in phase 2."""
        return condition_prompt(self.instance_token, class_names, defect_noun=defect_noun, tone=tone)

    def save(self, folder: Path, *, base: Path) -> None:  # noqa: ARG002
        """Write the files of both methods."""
        save_adapters(self._backbone, folder)
        save_vectors(self.parameters, self.instance_token, folder)

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:
        """Load the base, merge the adapters into it and add the token."""
        assert base is not None
        backbone = load_base(base, device)
        merge_lora(backbone.networks, folder / DIFFUSERS_NAME)
        add_learned_tokens(backbone, folder)
        return backbone
