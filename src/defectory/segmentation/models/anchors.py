"""Sets the sizes of anchors by the boxes that are to be found."""

from __future__ import annotations

import numpy as np
from torchvision.models.detection.anchor_utils import AnchorGenerator

from defectory.segmentation.sizing import BoxStatistics

MAX_RATIO = 8.0


def anchors_for(
    boxes: BoxStatistics | None, own: tuple[tuple[float, ...], ...], *, own_boxes: BoxStatistics
) -> AnchorGenerator:
    """Return anchors with as many sizes and shapes per level as a family's own, spread over the boxes to be found.

    The family's own range is only ever widened, since its weights know it.

    Args:
        boxes: sizes of the boxes to be found; None keeps the family's own.
        own: the family's sizes in pixels by level, fine to coarse.
        own_boxes: the smallest and largest of these sizes, and the height by width of its tall anchors; wide anchors
            are their mirror image.
    """
    ratio = own_boxes.elongation
    if boxes is not None:
        small, large = own_boxes.small_px, own_boxes.large_px
        low, high = min(small, max(2.0, boxes.small_px)), max(large, boxes.large_px)
        power = np.log(high / low) / np.log(large / small)
        own = tuple(tuple(round(float(low * (size / small) ** power), 2) for size in level) for level in own)
        ratio = float(np.clip(boxes.elongation, ratio, MAX_RATIO))
    return AnchorGenerator(own, ((1 / ratio, 1.0, ratio),) * len(own))
