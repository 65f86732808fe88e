"""Methods of learning a concept, one file each. Importing this package does not import torch."""

from __future__ import annotations

from typing import Any

from defectory.registry import Registry

CONCEPT_METHODS: Registry[Any] = Registry(
    "concept_methods",
    setting="concept.method",
    builtin={
        "dreambooth": "defectory.concept.methods.dreambooth:DreamBooth",
        "lora": "defectory.concept.methods.lora:LoRA",
        "lora_textual_inversion": "defectory.concept.methods.lora_textual_inversion:LoRATextualInversion",
        "none": "defectory.concept.methods.none:NoConcept",
        "textual_inversion": "defectory.concept.methods.textual_inversion:TextualInversion",
    },
)
"""Of classes that follow `methods.method.ConceptMethod`."""

__all__ = ["CONCEPT_METHODS"]
