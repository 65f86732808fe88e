"""The primary metric: the score by which checkpoints, arms and the verdict are chosen."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.scores import COLLAPSED_MAP, TELLING_PIXEL_AP
from defectory.artifacts.value import Value

PrimaryMetric = Literal["segm_map", "pixel_ap"]
METRIC_NAMES: dict[PrimaryMetric, str] = {"segm_map": "segm mAP", "pixel_ap": "pixel AP"}
"""For people."""
LEAST_SCORE: dict[PrimaryMetric, float] = {"segm_map": COLLAPSED_MAP, "pixel_ap": TELLING_PIXEL_AP}
"""Below it, a segmenter has found next to nothing."""


class MetricChoice(Value):
    """The primary metric of a run, and why."""

    metric: PrimaryMetric = "segm_map"
    best_mask_iou: float | None = None
    """Mean IoU that masks of a Mask R-CNN could reach at best on the train instances; None if it was not asked for."""
    why: str = ""
    """A sentence for people; empty if there is nothing to explain."""

    @property
    def words(self) -> str:
        """Return the metric's readable name."""
        return METRIC_NAMES[self.metric]
