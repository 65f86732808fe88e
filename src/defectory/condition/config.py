"""Configuration of phase 2."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from defectory.artifacts.config import Section, registered_name
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.engine.training.config import TrainingConfig


class ConditionConfig(Section):
    """Learn the condition: a network makes the frozen, adapted base obey drivers (paper, section 3.2)."""

    network: str = "controlnet"
    """`controlnet` (a trainable copy of the base, the paper's), a network of an installed package, or
    `package.module:attribute`.
    """
    init: Literal["auto", "copy", "embedded"] = "auto"
    """`copy`: from the adapted base's encoder (the paper); `embedded`: from the base's shipped control network; `auto`:
    embedded where there is one.
    """
    defect_noun: str = ""
    """Word after each class name in the prompt; `crack` in the paper, whose classes are kinds of crack."""
    defect_free_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of each batch that is defect-free train tiles with empty masks."""
    training: TrainingConfig = TrainingConfig(num_steps=600, learning_rate=3e-4)

    @field_validator("network")
    @classmethod
    def _known(cls, value: str) -> str:
        return registered_name(value, CONDITION_NETWORKS)
