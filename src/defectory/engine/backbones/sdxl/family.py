"""Recognises, checks and loads bases of Stable Diffusion XL. Imports torch only to load one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.files import verify_model_parts
from defectory.engine.backbones.others import classes_of, other_family
from defectory.engine.backbones.sdxl.facts import facts_of
from defectory.engine.backbones.words import verify_tokenizer

if TYPE_CHECKING:
    import torch

    from defectory.engine.backbones.sdxl.model import StableDiffusionXL

MODEL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


class StableDiffusionXLFamily:
    """Bases with one UNet, one autoencoder and two CLIP encoders; `controlnet/` and `digests.json` are optional."""

    def recognises(self, folder: Path, index: Mapping[str, Any]) -> bool:
        """Check that a base is of this family by its pipeline, or by its second text encoder."""
        is_named = index["_class_name"].startswith("StableDiffusionXL")
        has_second = "text_encoder_2" in classes_of(index) or (folder / "text_encoder_2").is_dir()
        return other_family(folder, index) is None and (is_named or has_second)

    def verify(self, folder: Path, *, weights: bool) -> BaseFacts:
        """Check a base folder, and return its facts."""
        facts = facts_of(folder)
        for part in ("tokenizer", "tokenizer_2"):
            verify_tokenizer(folder / part)
        if weights:
            verify_model_parts(folder, MODEL_PARTS)
        return facts

    def load(self, folder: Path, device: torch.device | str, dtype: torch.dtype) -> StableDiffusionXL:
        """Check a base folder and load it."""
        from defectory.engine.backbones.sdxl.model import load_stable_diffusion_xl

        return load_stable_diffusion_xl(folder, device, dtype)


FAMILY = StableDiffusionXLFamily()
