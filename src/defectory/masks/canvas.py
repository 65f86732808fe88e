"""Masks of any size as signed distances on a small canvas, where thin lines are as smooth as blobs, and back."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.masks.perturb import cropped, largest_pieces

Mask = NDArray[np.bool_]
Canvas = NDArray[np.float32]
"""Signed distance to a mask's outline, float32 [SIDE_PX,SIDE_PX] in -1..1, positive inside, clipped at `REACH_PX`."""
SIDE_PX, INNER_PX = 40, 33
"""Side of the canvas, and the longest side of a mask on it."""
REACH_PX = 4.0
FINER = 4
LEVELS = 512


def on_canvas(mask: Mask) -> Canvas:
    """Draw a mask bool [h,w], cropped to its box, in the middle of the canvas."""
    height, width = mask.shape
    side = max(height, width) * SIDE_PX / INNER_PX
    pad = int(np.ceil(side)) + 2
    whole = np.zeros((pad, pad), np.uint8)
    top, left = (pad - height) // 2, (pad - width) // 2
    whole[top : top + height, left : left + width] = mask
    inside = cv2.distanceTransform(whole, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - whole, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    signed = np.where(whole > 0, inside - 0.5, 0.5 - outside).astype(np.float32)
    scale = SIDE_PX / side
    middle = np.array([left + width / 2 - 0.5, top + height / 2 - 0.5])
    # canvas pixel (x, y) to mask pixel, both counted from pixel centres
    shift = middle - (SIDE_PX / 2 - 0.5) / scale
    matrix = np.array([[1 / scale, 0, shift[0]], [0, 1 / scale, shift[1]]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(
        signed, matrix, (SIDE_PX, SIDE_PX), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=-pad
    )
    # OpenCV's last bit depends on the memory address of an array
    return (np.round(np.clip(moved * scale / REACH_PX, -1, 1) * LEVELS) / LEVELS).astype(np.float32)


def from_canvas(canvas: Canvas, length_px: float) -> Mask | None:
    """Return the largest piece of a canvas as a mask bool [h,w]; None if the canvas is empty.

    The longest side of the mask is about `length_px`.
    """
    inside = canvas > 0
    if not inside.any():
        return None
    piece = largest_pieces(inside, 1)
    alone = np.where(piece | ~inside, canvas, -1.0).astype(np.float32)
    # measured between pixels: one canvas pixel is several pixels of a large mask
    fine = _resized(alone, SIDE_PX * FINER) > 0
    if not fine.any():
        return None
    ys, xs = np.nonzero(fine)
    long_side = (max(int(np.ptp(ys)), int(np.ptp(xs))) + 1) / FINER
    mask = _resized(alone, max(3, round(SIDE_PX * length_px / long_side))) > 0
    return cropped(largest_pieces(mask, 1)) if mask.any() else None


def _resized(canvas: Canvas, side: int) -> Canvas:
    # distances are linear across an outline, so interpolation is exact there
    return np.asarray(cv2.resize(canvas, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
