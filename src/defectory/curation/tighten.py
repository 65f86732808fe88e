"""Label tightening: fit a label to the defect that was drawn, if the two agree well enough."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.curation.fidelity import iou, neighbourhood

Mask = NDArray[np.bool_]
REACH_PX = 3
"""Maximum distance in pixels by which a tightened label may exceed the original."""
MIN_AGREEMENT = 0.5


def tighten(drawn: Mask, masks: Sequence[Mask]) -> list[Mask]:
    """Return the masks as they were drawn; a mask with IoU below one half stays as it is.

    Args:
        drawn: where something was drawn, bool [H,W].
        masks: bool [H,W] per instance.
    """
    result: list[Mask] = []
    for mask in masks:
        reach = cv2.dilate(mask.astype(np.uint8), np.ones((2 * REACH_PX + 1, 2 * REACH_PX + 1), np.uint8)) > 0
        own = drawn & reach & neighbourhood(mask, masks)
        # holes of a pixel or two come from the threshold, not from the defect
        closed = cv2.morphologyEx(own.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
        result.append(closed & reach if iou(own, mask) >= MIN_AGREEMENT else mask)
    return result
