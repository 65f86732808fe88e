"""Inserts a defect into a picture, which stays unchanged outside a feathered margin around the label."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.geometry import distance_to
from defectory.images.valuerange import ValueRange

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
SOLID_PX = 1.5
"""Up to this distance from the label the difference counts fully, since the label's border is soft."""


def feather(label: Mask, margin_px: float) -> NDArray[np.float32]:
    """Compute the share of a difference to add, float32 [H,W]: 1 on and next to a label, exactly 0 at the margin."""
    distance = distance_to(label)
    return np.clip((margin_px - distance) / max(margin_px - SOLID_PX, 1e-6), 0.0, 1.0).astype(np.float32)


def with_difference(tile: Image, drawn: Image, without: Image, share: NDArray[np.float32]) -> Image:
    """Add to a tile what a mask made the network draw, so that everything else in it stays as it is.

    Drawn as a whole, the surroundings of a defect would lose the part's holes, scratches and grain (decision 052).

    Args:
        tile: RGB uint8 [H,W,3].
        drawn: drawn with the mask.
        without: drawn from the same noise without it.
        share: share of the difference to add, float32 [H,W]; where it is 0 the tile stays.
    """
    added = tile + share[..., None] * (drawn.astype(np.float32) - without)
    return np.where(share[..., None] > 0, np.clip(np.round(added), 0, 255), tile).astype(np.uint8)


def paste_into(
    frame: NDArray[Any],
    *,
    before: Image,
    after: Image,
    corner_yx: tuple[int, int],
    size_hw: tuple[int, int],
    value_range: ValueRange | None = None,
) -> None:
    """Transfer a tile's changes into the frame it was cut from, at the frame's resolution, depth and range.

    The change is added, so that a frame with more detail than the tile keeps it. Pixels outside the change keep their
    values. No value leaves the range unless it was outside before.

    Args:
        frame: changed in place; [H,W], or [H,W,C] of grey and alpha, RGB or RGBA, of integers or floats; of an alpha
            channel nothing changes.
        before: the tile's image part, RGB uint8 [h,w,3].
        after: the same with the defect.
        corner_yx: of the window the tile was cut from, frame pixels.
        size_hw: of that window.
        value_range: of frames of more than 8 bit: what a tile shows as 0 and as 255. None stands for 0 and 255.
    """
    change = after.astype(np.float32) - before.astype(np.float32)
    reached = (after != before).any(axis=2)
    if change.shape[:2] != size_hw:
        change = cv2.resize(change, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR)
        reached = cv2.resize(reached.astype(np.uint8), (size_hw[1], size_hw[0]), interpolation=cv2.INTER_NEAREST) > 0
    window = frame[corner_yx[0] : corner_yx[0] + size_hw[0], corner_yx[1] : corner_yx[1] + size_hw[1]]
    low, high, per_level = (
        (0.0, 255.0, 1.0) if value_range is None else (value_range.low, value_range.high, value_range.per_level)
    )
    colours = window[..., None] if window.ndim == 2 else window[..., : 3 if window.shape[2] > 2 else 1]
    added = (change if colours.shape[2] == 3 else change.mean(axis=2, keepdims=True))[reached].astype(
        np.float64
    ) * per_level
    old = colours[reached].astype(np.float64)
    new = np.clip(old + added, np.minimum(low, old), np.maximum(high, old))
    if frame.dtype.kind != "f":
        limits = np.iinfo(frame.dtype)
        new = np.clip(np.round(new), limits.min, limits.max)
    colours[reached] = new.astype(frame.dtype)
