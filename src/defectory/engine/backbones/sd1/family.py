"""Recognises, checks and loads bases in Stable Diffusion layout. Imports torch only to load one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.files import verify_model_parts
from defectory.engine.backbones.others import other_family
from defectory.engine.backbones.sd1.facts import facts_of
from defectory.engine.backbones.words import verify_tokenizer

if TYPE_CHECKING:
    import torch

    from defectory.engine.backbones.sd1.model import StableDiffusion

MODEL_PARTS = ("unet", "vae", "text_encoder")


class StableDiffusionFamily:
    """Bases with one UNet, one autoencoder and one CLIP text encoder; `controlnet/` and `digests.json` are optional."""

    def recognises(self, folder: Path, index: Mapping[str, Any]) -> bool:
        """Check that a base is not of another known family; `verify` then reports what is wrong with it."""
        return other_family(folder, index) is None

    def verify(self, folder: Path, *, weights: bool) -> BaseFacts:
        """Check a base folder, and return its facts."""
        facts = facts_of(folder)
        verify_tokenizer(folder / "tokenizer")
        if weights:
            verify_model_parts(folder, MODEL_PARTS)
        return facts

    def load(self, folder: Path, device: torch.device | str, dtype: torch.dtype) -> StableDiffusion:
        """Check a base folder and load it."""
        from defectory.engine.backbones.sd1.model import load_stable_diffusion

        return load_stable_diffusion(folder, device, dtype)


FAMILY = StableDiffusionFamily()
