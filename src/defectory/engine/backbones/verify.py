"""Checks a base folder of any family before it is loaded. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.registry import family_of


def verify(folder: Path) -> BaseFacts:
    """Check a base folder before any of it is loaded, and return its facts.

    Args:
        folder: of a base whose family is registered.

    Raises:
        WeightsError: the family is not supported, or a part is missing, a pickle, truncated or different from
            `digests.json`.
    """
    return family_of(folder).verify(folder, weights=True)


def verify_layout(folder: Path) -> BaseFacts:
    """Check family, configurations and tokenizer of a base folder in milliseconds; skip its weights.

    Raises:
        WeightsError: as for `verify`.
    """
    return family_of(folder).verify(folder, weights=False)
