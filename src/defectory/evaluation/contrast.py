"""Contrast of defects against their surroundings (numpy, float64)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.scores import DefectContrast

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
K = TypeVar("K")
RING_PX = 5
"""Width of the ring of surroundings."""
GAP_PX = 1
"""Width of the gap between mask and ring; a border is never sharp."""
MIN_PX = 8


def defect_contrast(image: Image, mask: Mask, labelled: Mask) -> float | None:
    """Return the RMS contrast of a defect.

    It is the root mean square difference of its grey levels from the mean of its surroundings, divided by that mean.

    Args:
        image: RGB uint8 [H,W,3].
        mask: mask of the defect, bool [H,W].
        labelled: union of all masks of the image; other defects do not count as surroundings.

    Returns:
        0 or more, or None if defect or surroundings have fewer than 8 pixels.
    """
    grey = image.astype(np.float64).mean(axis=2)
    ring = _grown(mask, RING_PX) & ~_grown(labelled, GAP_PX)
    if min(int(mask.sum()), int(ring.sum())) < MIN_PX:
        return None
    level = float(grey[ring].mean())
    return float(np.sqrt(np.square(grey[mask] - level).mean())) / max(level, 1.0)


def score_contrast(
    synthetic: Iterable[tuple[Image, Sequence[tuple[str, Mask]]]],
    real: Iterable[tuple[Image, Sequence[tuple[str, Mask]]]],
) -> dict[str, DefectContrast]:
    """Compare the contrast of synthetic and real defects per class, as medians over instances.

    Args:
        synthetic: images RGB uint8 [H,W,3] with class name and mask of each defect.
        real: likewise, train tiles.

    Returns:
        Contrast by class name, sorted; classes missing on either side are left out.
    """
    made, true = contrasts_by_class(synthetic), contrasts_by_class(real)
    return {
        name: DefectContrast(
            synthetic=float(np.median(made[name])),
            real=float(np.median(true[name])),
            num_synthetic=len(made[name]),
            num_real=len(true[name]),
        )
        for name in sorted(made.keys() & true.keys())
    }


def contrasts_by_class(images: Iterable[tuple[Image, Sequence[tuple[K, Mask]]]]) -> dict[K, list[float]]:
    """Return the contrasts of all measurable defects, by class.

    Args:
        images: RGB uint8 [H,W,3] with class and mask bool [H,W] of each defect.
    """
    found: dict[K, list[float]] = {}
    for image, defects in images:
        if not defects:
            continue
        labelled = np.any([mask for _, mask in defects], axis=0)
        for name, mask in defects:
            contrast = defect_contrast(image, mask, labelled)
            if contrast is not None:
                found.setdefault(name, []).append(contrast)
    return found


def _grown(mask: Mask, by_px: int) -> Mask:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by_px + 1, 2 * by_px + 1), np.uint8)) > 0
