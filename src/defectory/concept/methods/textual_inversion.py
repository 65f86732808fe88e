"""Textual Inversion: only the embedding of a new token trains (Gal et al. 2022), as the paper names in section 3.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from defectory.concept.config import ConceptConfig
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.new_tokens import add_learned_tokens, new_token, start_tokens, token_tensors
from defectory.engine.backbones.prompts import condition_prompt
from defectory.engine.training.checkpoint import write_tensors


class TextualInversion:
    """Trains the vectors of one new token; the result is a few kilobytes."""

    folder: ClassVar[str] = "embedding"
    preserves_prior: ClassVar[bool] = False
    needs_base: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, config: ConceptConfig, *, instance_token: str) -> None:
        self.instance_token = new_token(instance_token)
        self.parameters = start_vectors(backbone, config, token=self.instance_token)
        self.learning_rates: Mapping[str, float] = dict.fromkeys(self.parameters, config.embedding_learning_rate)

    @classmethod
    def start(
        cls,
        backbone: Backbone,
        config: ConceptConfig,
        *,
        instance_token: str,
        seed: int,  # noqa: ARG003
    ) -> TextualInversion:
        """Add a token, which starts as the mean of the initializer's tokens."""
        return cls(backbone, config, instance_token=instance_token)

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        """Make the prompt of a tile, the same as in phase 2."""
        return condition_prompt(self.instance_token, class_names, defect_noun=defect_noun, tone=tone)

    def save(self, folder: Path, *, base: Path) -> None:  # noqa: ARG002
        """Write the vectors, in the form that diffusers loads."""
        save_vectors(self.parameters, self.instance_token, folder)

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:
        """Load the base, and add the token to its tokenizers and text encoders."""
        assert base is not None
        backbone = load_base(base, device)
        add_learned_tokens(backbone, folder)
        return backbone


def start_vectors(backbone: Backbone, config: ConceptConfig, *, token: str) -> dict[str, nn.Parameter]:
    """Add a token to a backbone, in place, and return its vectors by name.

    Raises:
        ConfigError: a tokenizer knows the token already, or nothing of the initializer.
    """
    initializer = config.initializer_word or "surface"
    return start_tokens(backbone, token, num_vectors=config.num_vectors, initializer=initializer)


def save_vectors(parameters: Mapping[str, nn.Parameter], token: str, folder: Path) -> None:
    """Write the vectors among the parameters of a method to a folder, one file per text encoder.

    Raises:
        StageError: no space or no permission.
    """
    for name, tensors in token_tensors(parameters, token).items():
        write_tensors(folder / name, tensors, {"format": "pt"})
