"""Segmentation of an image into the part's surface, and holes and background."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.geometry import DARK_LEVEL

Mask = NDArray[np.bool_]
RIM_SHARE, RIM_PX = 0.45, 2
"""The rim of a hole, in which brightness is below this share of the surface's, and its maximum width in pixels."""
SPECK_PX = 12
"""Dark specks with fewer pixels are texture."""
MIN_SOLID_SHARE = 0.25


def solid_pixels(image: NDArray[np.uint8], valid_hw: tuple[int, int], defects: Sequence[Mask] = ()) -> Mask:
    """Return where a tile shows the part's surface, bool [H,W]: not padding, dark holes, background or vignette.

    Args:
        image: RGB uint8 [H,W,3].
        valid_hw: size of the image part; the rest is padding.
        defects: bool [H,W] each; defects count as surface, however dark.
    """
    height, width = valid_hw
    inside = np.zeros(image.shape[:2], bool)
    inside[:height, :width] = True
    grey = cv2.cvtColor(np.ascontiguousarray(image[:height, :width]), cv2.COLOR_RGB2GRAY)
    soft, lit = cv2.GaussianBlur(grey, (0, 0), 0.7), grey[grey > DARK_LEVEL / 4]
    half = RIM_SHARE * float(np.median(lit)) if len(lit) else DARK_LEVEL
    core = ~_without_specks(soft > min(DARK_LEVEL, half))
    # a hole's rim ends where its brightness is half the surface's, not where its blur ends
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
