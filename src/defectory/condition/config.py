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
    """Condition network: `controlnet` (a trainable copy of the base's encoder, the paper), `adapter` (a T2I-Adapter,
    which sees the driver alone), `hypernetwork` (predicts changes of the base's attention weights), a network of an
    installed package, or `package.module:attribute`.
    """
    init: Literal["auto", "copy", "embedded"] = "auto"
    """Initial weights: `copy` of the adapted base's encoder (the paper), `embedded` for the base's shipped control
    network, or `auto` for `embedded` if the base has one, else `copy`.
    """
    capacity: float = Field(default=1.0, gt=0, le=1)
    """Share of the channels of the base's encoder that a `controlnet` copies. Below 1 it leaves out attention too, so
    that it trains and draws faster, and learns less (decision 061).
    """
    hypernetwork_rank: int = Field(default=4, ge=1)
    """Rank of the changes that a `hypernetwork` predicts for each attention projection."""
    defect_free_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of defect-free train tiles with empty masks in each batch. Raise it if the network ignores masks."""
    training: TrainingConfig = TrainingConfig(num_steps=600, learning_rate=3e-4)

    @field_validator("network")
    @classmethod
    def _known(cls, value: str) -> str:
        return registered_name(value, CONDITION_NETWORKS)
