"""Configuration of the downstream segmenter."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from defectory.artifacts.config import Section
from defectory.registry import Registry
from defectory.segmentation.arms import ARMS
from defectory.segmentation.models.registry import SEGMENTERS

Init = Literal["segmenter", "encoder", "random"]


class SegmentationConfig(Section):
    """The segmenter and the arms it is trained in; all arms take the same number of optimiser steps."""

    model: str = "light"
    """A family of segmenters: `light`, `resnet50`, one of an installed package, or `package.module:attribute`. `light`
    starts from shipped weights; `resnet50` starts from random ones and finds nothing after a few hundred steps
    (decision 036).
    """
    arms: tuple[str, ...] = ("real", "synthetic", "synthetic_then_real")
    """Ways to train it: `real`, `synthetic`, `synthetic_then_real`, those of installed packages, or
    `package.module:attribute`.
    """
    num_steps: int = Field(default=400, ge=2)
    fold_steps: int | None = Field(default=None, ge=2)
    """Steps of the segmenters that are trained in folds of train, for `synthesis.focus` and the check `agreement`;
    None: `num_steps`.
    """
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of the training step; prediction is always fp32."""
    defect_free_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of each batch that is defect-free real tiles, the same in every arm of ours."""
    real_share_of_steps: float = Field(default=0.5, gt=0, lt=1)
    """synthetic_then_real: share of the steps spent on real tiles at the end."""
    validate_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)
    max_val_images: int = Field(default=60, ge=1)
    """Val images scored at each validation; defect-free ones at most as many as defective ones."""
    score_threshold: float | None = Field(default=None, ge=0, le=1)
    """Detections under this score count neither for IoU nor for Hausdorff distance; None: where F1 on real val is best,
    per segmenter.
    """
    init: Init = "segmenter"
    """What every arm of the light segmenter starts from: the shipped segmenter for procedural defects, the shipped
    encoder alone, or random weights.
    """
    num_processes: int | None = Field(default=None, ge=1)
    """Segmenters trained side by side on a CPU, which share its threads; None: 4 at most, each with about a gigabyte of
    memory, where there is more than one thread; 1: one after the other.
    """
    seeds: tuple[int, ...] = (0,)

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
