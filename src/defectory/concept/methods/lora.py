"""LoRA: low-rank adapters on the denoiser (Hu et al. 2021), an alternative that the paper names in section 3.1.

Trains like DreamBooth, with prior preservation and the same prompts, but only the adapters. They are merged into the
base's weights when the concept is loaded, so that everything after phase 1 sees a plain base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from defectory.concept.config import ConceptConfig
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.lora import (
    DIFFUSERS_NAME,
    KOHYA_NAME,
    TEXT_TARGETS,
    add_lora,
    kohya_tensors,
    lora_tensors,
    merge_lora,
)
from defectory.engine.backbones.prompts import condition_prompt
from defectory.engine.training.checkpoint import write_tensors


class LoRA:
    """Trains adapters on the denoiser and, if that is set, on the text encoders; the result is an adapter."""

    folder: ClassVar[str] = "lora"
    preserves_prior: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, config: ConceptConfig, *, instance_token: str, seed: int) -> None:
        self._backbone, self.instance_token = backbone, instance_token
        self.parameters = start_adapters(backbone, config, seed=seed)
        self.learning_rates: Mapping[str, float] = dict.fromkeys(self.parameters, config.lora_learning_rate)

    @classmethod
    def start(cls, backbone: Backbone, config: ConceptConfig, *, instance_token: str, seed: int) -> LoRA:
        """Add adapters, which change nothing yet."""
        return cls(backbone, config, instance_token=instance_token, seed=seed)

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        """Make the prompt of a tile, the same as in phase 2."""
        return condition_prompt(self.instance_token, class_names, defect_noun=defect_noun, tone=tone)

    def save(self, folder: Path, *, base: Path) -> None:  # noqa: ARG002
        """Write the adapters twice: with the names of diffusers, and with those of kohya's scripts."""
        save_adapters(self._backbone, folder)

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:
        """Load the base, and merge the adapters into it."""
        assert base is not None
        backbone = load_base(base, device)
        merge_lora(backbone.networks, folder / DIFFUSERS_NAME)
        return backbone


def start_adapters(backbone: Backbone, config: ConceptConfig, *, seed: int) -> dict[str, nn.Parameter]:
    """Add adapters to a backbone's networks, in place, and return their parameters by name.

    Raises:
        ConfigError: a target of `lora_targets` is no layer of the denoiser.
    """
    parameters: dict[str, nn.Parameter] = {}
    for part, network in backbone.networks.items():
        is_denoiser = network is backbone.denoiser
        if is_denoiser or config.train_text_encoder:
            added = add_lora(
                network,
                targets=config.lora_targets if is_denoiser else TEXT_TARGETS,
                rank=config.lora_rank,
                alpha=config.lora_rank if config.lora_alpha is None else config.lora_alpha,
                seed=seed,
                where="concept.lora_targets",
            )
            parameters |= {f"{part}.{name}": parameter for name, parameter in added.items()}
    return parameters


def save_adapters(backbone: Backbone, folder: Path) -> None:
    """Write the adapters of a backbone's networks to a folder, for diffusers and, of a UNet, for kohya's readers.

    kohya's scripts name and join the layers of transformers in another way.

    Raises:
        StageError: no space or no permission.
    """
    tensors = lora_tensors(backbone.networks)
    write_tensors(folder / DIFFUSERS_NAME, tensors, {"format": "pt"})
    if "unet" in backbone.networks:
        write_tensors(folder / KOHYA_NAME, kohya_tensors(tensors), {"format": "pt"})
