"""Where an image shows a part's surface, and where a hole in it or what is around it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.geometry import DARK_LEVEL

Mask = NDArray[np.bool_]
RIM_SHARE, RIM_PX = 0.45, 2
"""A hole's rim is where brightness falls under this share of the surface's, at most so many pixels from the dark
itself.
"""
SPECK_PX = 12
"""Dark specks of fewer pixels are texture."""
MIN_SOLID_SHARE = 0.25


def solid_pixels(image: NDArray[np.uint8], valid_hw: tuple[int, int], defects: Sequence[Mask] = ()) -> Mask:
    """Give where a tile shows the part's surface, bool [H,W]: inside the image, off dark holes, background and
    vignette.

    Args:
        image: RGB uint8 [H,W,3].
        valid_hw: height and width that hold image, not padding.
        defects: bool [H,W] each, surface however dark.
    """
    height, width = valid_hw
    inside = np.zeros(image.shape[:2], bool)
    inside[:height, :width] = True
    grey = cv2.cvtColor(np.ascontiguousarray(image[:height, :width]), cv2.COLOR_RGB2GRAY)
    soft, lit = cv2.GaussianBlur(grey, (0, 0), 0.7), grey[grey > DARK_LEVEL / 4]
    half = RIM_SHARE * float(np.median(lit)) if len(lit) else DARK_LEVEL
    core = ~_without_specks(soft > min(DARK_LEVEL, half))
    # a hole's rim is where its brightness is half the surface's, not where the blur of it ends
    reach = cv2.dilate(core.astype(np.uint8), np.ones((2 * RIM_PX + 1, 2 * RIM_PX + 1), np.uint8)) > 0
    solid = np.zeros_like(inside)
    solid[:height, :width] = ~(core | (reach & (soft < half)))
    for mask in defects:
        solid |= mask & inside
    return solid if solid.sum() > MIN_SOLID_SHARE * inside.sum() else inside


def _without_specks(solid: Mask) -> Mask:
    for value in (False, True):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((solid == value).astype(np.uint8), connectivity=8)
        small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < SPECK_PX)
        solid = solid ^ (np.isin(labels, small[small > 0]))
    return solid
