"""Configuration of the downstream segmenter."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from defectory.artifacts.config import Section
from defectory.engine.config import MixedPrecision
from defectory.registry import Registry
from defectory.segmentation.arms import ARMS
from defectory.segmentation.models.registry import SEGMENTERS

Init = Literal["segmenter", "encoder", "random"]


class SegmentationConfig(Section):
    """The segmenter and its training arms. All arms take the same number of optimiser steps."""

    model: str = "light"
    """Segmenter family: `light` (shipped weights), `resnet50` (random weights), a family of an installed package, or
    `package.module:attribute`. `resnet50` needs far more than a few hundred steps to find anything (decision 036).
    """
    arms: tuple[str, ...] = ("real", "synthetic", "synthetic_then_real")
    """Training arms: `real`, `synthetic`, `synthetic_then_real`, arms of installed packages, or
    `package.module:attribute`.
    """
    num_steps: int = Field(default=400, ge=2)
    """Optimiser steps of each segmenter. Raise it if a segmenter learns nothing."""
    fold_steps: int | None = Field(default=None, ge=2)
    """Optimiser steps of the fold segmenters, which serve `synthesis.focus` and the check `agreement`; None uses
    `num_steps`.
    """
    batch_size: int = Field(default=8, ge=1)
    """Tiles per optimiser step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=1e-3, ge=0)
    """Decoupled weight decay of the optimiser."""
    mixed_precision: MixedPrecision = "bf16"
    """Precision of the training step: `bf16`, or `no` for fp32 throughout. Prediction always runs in fp32."""
    defect_free_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of defect-free real tiles in each batch, the same in every built-in arm."""
    real_share_of_steps: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps that the arm `synthetic_then_real` spends on real tiles at the end."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between two validations."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
    max_val_images: int = Field(default=60, ge=1)
    """Most val images scored at each validation. Defect-free images never outnumber defective ones."""
    score_threshold: float | None = Field(default=None, ge=0, le=1)
    """Detections below this score do not count for IoU and Hausdorff distance; None picks the score with the best F1 on
    real val, per segmenter.
    """
    init: Init = "segmenter"
    """Initial weights of the light segmenter in every arm: `segmenter` (shipped, trained on procedural defects),
    `encoder` (the shipped encoder alone) or `random`.
    """
    seeds: tuple[int, ...] = (0,)
    """Seeds that each arm is trained with. Use at least three for a verdict."""

    def of_one_training(self) -> dict[str, object]:
        """Return the settings that decide how one segmenter is trained, JSON-compatible."""
        return self.model_dump(mode="json", exclude={"arms", "seeds", "fold_steps"})

    @field_validator("model")
    @classmethod
    def _is_a_known_family(cls, value: str) -> str:
        return _known(value, SEGMENTERS)

    @field_validator("arms")
    @classmethod
    def _are_known_arms(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(value, ARMS) for value in values)


def _known(name: str, registry: Registry[Any]) -> str:
    """Return a name that a registry has, or may import."""
    if ":" not in name and name not in registry.names():
        raise ValueError(f"{name!r} is not one of {', '.join(registry.names())}, nor `package.module:attribute`")
    return name
