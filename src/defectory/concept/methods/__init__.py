"""Ways to learn a concept; each is one file. Imports no torch."""

from __future__ import annotations

from typing import Any

from defectory.registry import Registry

CONCEPT_METHODS: Registry[Any] = Registry(
    "concept_methods",
    setting="concept.method",
    builtin={"dreambooth": "defectory.concept.methods.dreambooth:DreamBooth"},
)
"""Of classes that follow `methods.method.ConceptMethod`."""

__all__ = ["CONCEPT_METHODS"]
