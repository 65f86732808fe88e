"""Where on a tile a mask goes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
MAX_TRIES = 24
GAP_PX = 2
"""Pixels that stay free between two defects, so that they do not grow into one."""


def place(mask: Mask, *, size_hw: tuple[int, int], allowed: Mask, taken: Mask, rng: np.random.Generator) -> Mask | None:
    """Place a cropped mask somewhere on a tile, wholly on allowed pixels and clear of other defects.

    Args:
        mask: bool [h,w], cropped to its box.
        size_hw: of the tile, pixels.
        allowed: bool [H,W], where a defect may lie.
        taken: bool [H,W], where one lies already.
        rng: source of randomness.

    Returns:
        bool [H,W], or None where no place was found. A mask larger than the allowed window is cut at its border.
    """
    height, width = mask.shape
    ys, xs = np.nonzero(allowed)
    if len(ys) == 0:
        return None
    low_y, high_y, low_x, high_x = int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1
    for attempt in range(MAX_TRIES):
        # later tries settle for a mask that is cut by the border
        loose = attempt >= MAX_TRIES // 2 or height > high_y - low_y or width > high_x - low_x
        y = int(rng.integers(low_y - (height // 2 if loose else 0), max(low_y, high_y - (height // 2 if loose else height)) + 1))
        x = int(rng.integers(low_x - (width // 2 if loose else 0), max(low_x, high_x - (width // 2 if loose else width)) + 1))
        result = _pasted(mask, y, x, size_hw) & allowed
        visible = int(result.sum())
        if visible < (0.4 if loose else 0.9) * mask.sum() or visible == 0:
            continue
        grown = cv2.dilate(result.astype(np.uint8), np.ones((2 * GAP_PX + 1, 2 * GAP_PX + 1), np.uint8)) > 0
        if (grown & taken).any():
            continue
        return result
    return None


def _pasted(mask: Mask, y: int, x: int, size_hw: tuple[int, int]) -> Mask:
    result = np.zeros(size_hw, bool)
    y0, x0, y1, x1 = max(0, y), max(0, x), min(size_hw[0], y + mask.shape[0]), min(size_hw[1], x + mask.shape[1])
    if y1 > y0 and x1 > x0:
        result[y0:y1, x0:x1] = mask[y0 - y : y1 - y, x0 - x : x1 - x]
    return result
