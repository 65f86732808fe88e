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
    fidelity_reward: float = Field(default=0.0, ge=0)
    """Weight of a loss late in training that asks for a difference between the images with and without a mask that
    covers the mask and nothing else. 0 turns it off. Steps with it take about half as long again (decision 068).
    """
    fidelity_reward_start: float = Field(default=0.5, ge=0, lt=1)
    """Share of the training steps before that loss begins."""
    fidelity_reward_max_noise: float = Field(default=0.4, gt=0, le=1)
    """Noise level, as a share of the training timesteps, up to which tiles get that loss; above it, one prediction does
    not show what will be drawn.
    """
    training: TrainingConfig = TrainingConfig(num_steps=600, learning_rate=3e-4)

    @field_validator("network")
    @classmethod
    def _known(cls, value: str) -> str:
        return registered_name(value, CONDITION_NETWORKS)
