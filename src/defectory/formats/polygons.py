"""Polygons to masks: several parts, holes, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.errors import AnnotationError
from defectory.rle import Rle, decode, encode

OUTSIDE_TOLERANCE_PX = 1.0


def polygons_to_rle(rings: Sequence[Sequence[float]], size_hw: tuple[int, int], where: object) -> Rle:
    """Rasterise COCO polygon rings as pycocotools does; a ring inside another that turns the other way is a hole.

    Args:
        rings: flat x, y lists, pixels.
        size_hw: height and width of the image.
        where: named in errors.

    Raises:
        AnnotationError: a ring is empty, out of bounds or crosses itself.
    """
    if not rings:
        raise AnnotationError(where, "segmentation is an empty list", "draw the polygon or remove the annotation")
    points = [_checked(ring, size_hw, where) for ring in rings]
    masks = [_raster(ring, size_hw) for ring in points]
    areas = [_signed_area(ring) for ring in points]
    result = np.zeros(size_hw, bool)
    holes: list[int] = []
    for index, mask in enumerate(masks):
        inside = any(
            other != index
            and areas[other] * areas[index] < 0
            and abs(areas[other]) > abs(areas[index])
            and not (mask & ~masks[other]).any()
            for other in range(len(masks))
        )
        if inside:
            holes.append(index)
        else:
            result |= mask
    for index in holes:
        result &= ~masks[index]
    if not result.any():
        raise AnnotationError(where, "polygon covers no pixel", "draw it larger or remove the annotation")
    return encode(result)


def rle_to_polygons(rle: Rle) -> list[list[float]]:
    """Give the outer and inner borders of a mask as COCO rings (an export: thin parts and holes are approximate)."""
    import cv2

    mask = decode(rle).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings: list[list[float]] = []
    for contour in contours:
        points = contour[:, 0, :].astype(float) + 0.5
        if len(points) < 3:
            x0, y0 = points.min(axis=0) - 0.5
            x1, y1 = points.max(axis=0) + 0.5
            points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        rings.append([float(value) for value in points.reshape(-1)])
    return rings


def _checked(ring: Sequence[float], size_hw: tuple[int, int], where: object) -> NDArray[np.float64]:
    try:
        flat = np.asarray(ring, np.float64)
    except (TypeError, ValueError):
        raise AnnotationError(where, "polygon holds something other than numbers", "export it again") from None
    if flat.ndim != 1 or flat.size < 6 or flat.size % 2:
        raise AnnotationError(where, f"polygon of {flat.size} numbers, at least 6 and an even count expected", "draw at least three points")
    if not np.isfinite(flat).all():
        raise AnnotationError(where, "polygon holds a number that is not finite", "export it again")
    points = flat.reshape(-1, 2)
    height, width = size_hw
    low, high = points.min(axis=0), points.max(axis=0)
    if low.min() < -OUTSIDE_TOLERANCE_PX or high[0] > width + OUTSIDE_TOLERANCE_PX or high[1] > height + OUTSIDE_TOLERANCE_PX:
        raise AnnotationError(
            where,
            f"polygon reaches ({high[0]:.0f}, {high[1]:.0f}), image is {height}x{width} (height x width)",
            "clip it to the image or re-export",
        )
    if abs(_signed_area(points)) < 1e-9:
        raise AnnotationError(where, "polygon has no area", "draw it again or remove the annotation")
    crossing = _first_crossing(points)
    if crossing is not None:
        raise AnnotationError(
            where, f"polygon crosses itself near ({crossing[0]:.0f}, {crossing[1]:.0f})", "draw it without crossing, or as several parts"
        )
    return points


def _signed_area(points: NDArray[np.float64]) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _first_crossing(points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Give a point where two sides that share no end properly cross, or None."""
    keep = np.any(points != np.roll(points, 1, axis=0), axis=1)
    a = points[keep]
    b = np.roll(a, -1, axis=0)
    count = len(a)
    for first in range(count - 2):
        others = np.arange(first + 2, count if first > 0 else count - 1)
        if len(others) == 0:
            continue
        c, d = a[others], b[others]
        side_c, side_d = _side(a[first], b[first], c), _side(a[first], b[first], d)
        side_a, side_b = _side2(c, d, a[first]), _side2(c, d, b[first])
        hit = (side_c * side_d < 0) & (side_a * side_b < 0)
        if hit.any():
            return (c[hit][0] + d[hit][0]) / 2
    return None


def _side(a: NDArray[np.float64], b: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return (b[0] - a[0]) * (points[:, 1] - a[1]) - (b[1] - a[1]) * (points[:, 0] - a[0])


def _side2(c: NDArray[np.float64], d: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    return (d[:, 0] - c[:, 0]) * (point[1] - c[:, 1]) - (d[:, 1] - c[:, 1]) * (point[0] - c[:, 0])


def _raster(ring: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    from faster_coco_eval.core import mask as mask_api

    rles: Any = mask_api.frPyObjects([ring.reshape(-1).tolist()], *size_hw)
    return np.asarray(mask_api.decode(mask_api.merge(rles)), bool)
