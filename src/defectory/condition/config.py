"""Configuration of phase 2."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from defectory.artifacts.config import Section
from defectory.engine.training.config import TrainingConfig


class ConditionConfig(Section):
    """Learn the condition: a trainable copy of the frozen, adapted base obeys drivers (paper, section 3.2)."""

    init: Literal["auto", "copy", "embedded"] = "auto"
    """`copy`: from the adapted base's encoder (the paper); `embedded`: from the base's shipped control network; `auto`:
    embedded where there is one.
    """
    defect_noun: str = ""
    """Word after each class name in the prompt; `crack` in the paper, whose classes are kinds of crack."""
    defect_free_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of each batch that is defect-free train tiles with empty masks."""
    training: TrainingConfig = TrainingConfig(num_steps=600, learning_rate=3e-4)
