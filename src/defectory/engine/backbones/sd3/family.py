"""Recognises, checks and loads bases of Stable Diffusion 3. Imports torch only to load one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.files import read_json, verify_model_parts
from defectory.engine.backbones.sd3.facts import facts_of, has_t5
from defectory.engine.backbones.words import verify_tokenizer
from defectory.errors import WeightsError

if TYPE_CHECKING:
    import torch

    from defectory.engine.backbones.sd3.model import StableDiffusion3

MODEL_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
PIPELINES = ("StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline")
T5_WORDS = ("tokenizer.json", "spiece.model")
"""Files of a T5 tokenizer, of which one must be there."""


class StableDiffusion3Family:
    """Bases with an MMDiT, one autoencoder, two CLIP encoders, and optionally T5; `controlnet/` is optional."""

    def recognises(self, folder: Path, index: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Check that a base is of this family by its pipeline."""
        return index["_class_name"] in PIPELINES

    def verify(self, folder: Path, *, weights: bool) -> BaseFacts:
        """Check a base folder, and return its facts."""
        facts, with_t5 = facts_of(folder), has_t5(folder)
        for part in ("tokenizer", "tokenizer_2"):
            verify_tokenizer(folder / part)
        if with_t5:
            read_json(folder / "tokenizer_3" / "tokenizer_config.json")
            if not any((folder / "tokenizer_3" / name).is_file() for name in T5_WORDS):
                raise WeightsError(folder / "tokenizer_3", f"has none of {', '.join(T5_WORDS)}", "copy the base again")
        if weights:
            verify_model_parts(folder, (*MODEL_PARTS, "text_encoder_3") if with_t5 else MODEL_PARTS)
        return facts

    def load(self, folder: Path, device: torch.device | str, dtype: torch.dtype) -> StableDiffusion3:
        """Check a base folder and load it."""
        from defectory.engine.backbones.sd3.model import load_stable_diffusion_3

        return load_stable_diffusion_3(folder, device, dtype)


FAMILY = StableDiffusion3Family()
