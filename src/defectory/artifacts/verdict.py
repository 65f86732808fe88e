"""The verdict of a run or study, with the figures that it rests on."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.primary_metric import PrimaryMetric
from defectory.artifacts.value import Value

Outcome = Literal["use it", "no worse and no better", "do not use it", "not enough evidence"]
Interval = tuple[float, float]


class ArmFigure(Value):
    """Primary metric of one arm on test, and its gain over the reference."""

    arm: str
    uses_synthetic: bool
    validation: float | None
    """Mean primary metric on validation, by which reference and candidate are chosen."""
    mean: float
    interval: Interval | None
    """95% interval of the mean; None with fewer than three seeds."""
    gain: float | None = None
    """Gain over the reference; None for the reference."""
    gain_interval: Interval | None = None
    p_value: float | None = None
    """Of no gain and no loss, corrected for the number of arms by Holm's method."""


class MoreNeeded(Value):
    """What would settle an open verdict if gain and spread stay the same."""

    seeds: int | None = None
    """Further seeds, if seeds alone can settle it."""
    images: int | None = None
    """Further test images, rounded up to two digits, if images alone can settle it."""
    factor: float | None = None
    """If neither alone can: this many times as many seeds and test images."""


class Verdict(Value):
    """Whether the best arm with synthetic data beats the best arm without, by the primary metric on test."""

    outcome: Outcome
    sentence: str
    metric: PrimaryMetric = "segm_map"
    """The primary metric."""
    reference: str | None = None
    """The arm without synthetic data that is best on validation."""
    candidate: str | None = None
    """The arm with synthetic data that is best on validation."""
    gain: float | None = None
    """Mean gain of the candidate over the reference on test, less the bias of choosing them."""
    selection_bias: float = 0.0
    """By how much choosing arms on validation raises the gain on test; 0 without a choice."""
    interval: Interval | None = None
    """95% interval of the gain; None with fewer than three seeds."""
    standard_error: float | None = None
    margin: float
    """Gains and losses within this are taken for none."""
    num_seeds: int = 0
    num_folds: int = 0
    num_groups: int = 0
    """Groups of test images with a defect; 0 if test images count as fixed."""
    num_images: int = 0
    more_needed: MoreNeeded | None = None
    """What would settle it; None if it is settled, or if the gain is not known well enough to say."""
    pixel_ap_gain: float | None = None
    """Mean gain in pixel AP of the candidate over the reference; known only where segm mAP decides and says nothing."""
    pixel_ap_interval: Interval | None = None
    """Its 95% interval."""
    arms: tuple[ArmFigure, ...] = ()
