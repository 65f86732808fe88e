"""Chooses at which scale, and in crops of which size, a segmenter sees images. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from defectory.artifacts.dataset import ImageRecord
from defectory.artifacts.value import Value
from defectory.rle import area_px, box_of

MIN_WIDTH_PX = 5.0
"""Images are not shrunk so far that the thinner defects become narrower than this."""
THIN_QUANTILE = 0.25
LONG_QUANTILE = 0.9
"""The scale is chosen for all but the longest tenth of the images."""


class Sizing(Value):
    """How a segmenter sees images: resized by `scale`, and in training cut to at most `input_px` on each side."""

    scale: float
    """Pixels that the segmenter sees per image pixel."""
    input_px: int
    reason: str = ""


class BoxStatistics(Value):
    """Sizes of the boxes that a segmenter is trained to find, in the pixels that it sees."""

    small_px: float
    """Square root of the area that all but the smallest boxes reach."""
    large_px: float
    """Square root of the area that all but the largest boxes stay below."""
    elongation: float
    """Longer by shorter side that all but the most elongated boxes stay below, 1 or more."""


OWN_BOXES = BoxStatistics(small_px=8.0, large_px=100.0, elongation=3.0)
"""The boxes that the light segmenter's shipped weights were trained to find."""


def choose_sizing(records: Sequence[ImageRecord], *, input_px: int, scale: float | None) -> Sizing:
    """Choose the scale at which images are seen: whole images where their defects stay wide enough, else nearer.

    Args:
        records: labelled images of train.
        input_px: side of what the segmenter sees at once in training.
        scale: fixed by the user; None chooses one, never above 1.
    """
    if scale is not None:
        return Sizing(scale=scale, input_px=input_px, reason="scale as set")
    longest = float(np.quantile([max(record.size_hw) for record in records], LONG_QUANTILE))
    whole = min(1.0, input_px / longest)
    widths = [width for record in records for width in _widths_px(record)]
    needed = min(1.0, MIN_WIDTH_PX / max(1e-6, float(np.quantile(widths, THIN_QUANTILE)))) if widths else whole
    if whole >= needed:
        return Sizing(scale=round(whole, 4), input_px=input_px, reason="whole images")
    return Sizing(
        scale=round(needed, 4), input_px=input_px, reason=f"crops, so that thin defects stay {MIN_WIDTH_PX:.0f} px wide"
    )


def _widths_px(record: ImageRecord) -> Iterable[float]:
    """Yield about how wide each instance is: its area by the longer side of its box."""
    for instance in record.instances:
        x0, y0, x1, y1 = box_of(instance.rle)
        if not instance.is_crowd and x1 > x0:
            yield area_px(instance.rle) / max(x1 - x0, y1 - y0)


def box_statistics(boxes_hw: Sequence[tuple[float, float]]) -> BoxStatistics | None:
    """Summarise the sides of boxes, pixels that the segmenter sees; None without boxes."""
    sides = np.array([box for box in boxes_hw if min(box) > 0], np.float64).reshape(-1, 2)
    if not len(sides):
        return None
    roots = np.sqrt(sides.prod(axis=1))
    elongation = sides.max(axis=1) / sides.min(axis=1)
    return BoxStatistics(
        small_px=round(float(np.quantile(roots, 0.05)), 2),
        large_px=round(float(np.quantile(roots, 0.95)), 2),
        elongation=round(float(np.quantile(elongation, 0.9)), 2),
    )
