"""Loads what phase 1 learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from defectory.artifacts.weights import Concept
from defectory.concept.methods import CONCEPT_METHODS
from defectory.concept.methods.method import ConceptMethod
from defectory.engine.backbones.backbone import Backbone
from defectory.errors import WeightsError
from defectory.files import digest_folder


def load_concept(
    folder: Path, device: torch.device | str = "cpu", *, find_base: Callable[[], Path] | None = None
) -> Backbone:
    """Load a backbone that knows a concept.

    Args:
        folder: phase 1's stage folder.
        device: where the models go.
        find_base: returns the base that the concept was learned from; called if the method's result is not a whole
            base.

    Raises:
        InputError: the folder holds no concept.
        ConfigError: its method is not installed.
        WeightsError: the weights cannot be used, or the needed base is missing or a different one.
    """
    concept = Concept.load(folder / "concept.json")
    method: type[ConceptMethod] = CONCEPT_METHODS.get(concept.method)
    base = None
    if method.needs_base:
        if find_base is None:
            raise WeightsError(folder, f"{concept.method} needs the base it was learned from", "give that base too")
        base = find_base()
        if digest_folder(base) != concept.base_digest:
            raise WeightsError(base, "not the base that the concept was learned from", "give that one, or learn again")
    return method.load(folder / method.folder, base=base, device=torch.device(device))
