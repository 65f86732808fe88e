"""Outlines to masks: several rings, holes, and what is refused.

Rings are filled exactly as COCO's own tools fill them, bit for bit, but along the outline alone: no mask is made, so
that many small outlines on a large image and one dense outline are cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from defectory.errors import AnnotationError
from defectory.rle import Rle, rle_of_edges

SILENT_PX = 1.0
"""Outlines may touch the border's outer side by rounding."""
TOLERANCE_PX, TOLERANCE_SHARE = 5.0, 0.02
"""An outline may reach this far beyond a border, pixels or share of the side, whichever is more; it is clipped."""
SUBPIXELS = 5
"""COCO walks along an outline in steps of a fifth of a pixel."""
MAX_STEPS = 20_000_000
"""Such steps of all rings of an annotation: an outline of 4 million pixels of length."""
_CHUNK_STEPS = 2_000_000
_CHUNK_SIDES = 64
Ring = NDArray[np.float64]
Edges = NDArray[np.int64]
Notice = Callable[[str, str], None]
"""Called with what is worth a remark, equal for all places, and the detail of this place."""


def polygons_to_rle(rings: object, size_hw: tuple[int, int], where: object, *, notice: Notice | None = None) -> Rle:
    """Fill polygon rings as pycocotools does; a ring inside another that turns the other way is a hole.

    Args:
        rings: flat x, y lists or lists of x, y pairs, pixels; or one such ring alone.
        size_hw: height and width of the image.
        where: named in errors.
        notice: told of what is read all the same: stray rings, crossings, outlines clipped at the border.

    Raises:
        AnnotationError: no usable ring, numbers that are none, or an outline far outside.
    """
    tell = notice or _silent
    points = _without_stray_rings(rings_of(rings, where), where, tell)
    _refuse_normalised(points, size_hw, where)
    _check_ends(points, size_hw, where, tell)
    _check_length(points, where)
    filled = [_filled(_crossings(ring, size_hw)) for ring in points]
    if any(_crosses_itself(ring) for ring in points):
        tell("the outline crosses itself; it is filled as pycocotools fills it", "")
    edges = filled[0] if len(filled) == 1 else _joined(filled, [_signed_area(ring) for ring in points])
    if not len(edges):
        raise AnnotationError(where, "polygon covers no pixel", "draw it larger or remove the annotation")
    return rle_of_edges(edges, size_hw)


def rings_of(value: object, where: object) -> list[Ring]:
    """Return rings float64 [n,2] from a list of flat lists, of lists of pairs, or from one ring alone.

    Raises:
        AnnotationError: something else, or something in it that is not a finite number.
    """
    if not isinstance(value, list | tuple):
        raise AnnotationError(where, f"polygon is {type(value).__name__}, a list was expected", "export it again")
    rings: Sequence[Any] = value
    if not rings:
        raise AnnotationError(where, "segmentation is an empty list", "draw the polygon or remove the annotation")
    if not isinstance(rings[0], list | tuple) or (len(rings) > 2 and all(_is_pair(entry) for entry in rings)):
        rings = [rings]
    return [_ring_of(ring, where) for ring in rings]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and not isinstance(value[0], list | tuple)


def _ring_of(ring: Any, where: object) -> Ring:
    if not isinstance(ring, list | tuple):
        raise AnnotationError(where, "polygon holds a list and something beside it that is no list", "export it again")
    flat: list[Any] = (
        [number for pair in ring for number in pair] if ring and all(_is_pair(pair) for pair in ring) else list(ring)
    )
    if any(kind not in (int, float, str) for kind in set(map(type, flat))):
        raise AnnotationError(where, "polygon holds something other than numbers", "export it again")
    try:
        values = np.asarray([float(number) for number in flat], np.float64)
    except (TypeError, ValueError, OverflowError):
        raise AnnotationError(where, "polygon holds something other than numbers", "export it again") from None
    if not np.isfinite(values).all():
        raise AnnotationError(where, "polygon holds a number that is not finite", "export it again")
    if len(values) % 2:
        raise AnnotationError(where, f"polygon of {len(values)} numbers, an even count was expected", "export it again")
    return values.reshape(-1, 2)


def _silent(what: str, detail: str) -> None:
    """Ignore what is reported."""


def _without_stray_rings(rings: list[Ring], where: object, tell: Notice) -> list[Ring]:
    kept = [ring for ring in rings if len(ring) >= 3]
    if not kept:
        points = max(len(ring) for ring in rings)
        raise AnnotationError(where, f"polygon of {points} points, at least 3 expected", "draw at least three points")
    if len(kept) < len(rings):
        tell("a stray ring of fewer than 3 points is left out", "")
    return kept


def _refuse_normalised(rings: list[Ring], size_hw: tuple[int, int], where: object) -> None:
    if max(size_hw) > 4 and all(float(ring.min()) >= 0 and float(ring.max()) <= 1.0 for ring in rings):
        raise AnnotationError(
            where,
            "all coordinates lie between 0 and 1, so they are normalised; pixels were expected",
            "multiply x by the image's width and y by its height",
        )


def _check_ends(rings: list[Ring], size_hw: tuple[int, int], where: object, tell: Notice) -> None:
    height, width = size_hw
    low = np.min([ring.min(axis=0) for ring in rings], axis=0)
    high = np.max([ring.max(axis=0) for ring in rings], axis=0)
    beyond = {"left": -low[0], "right": high[0] - width, "top": -low[1], "bottom": high[1] - height}
    for end, px in beyond.items():
        side = width if end in ("left", "right") else height
        if px > max(TOLERANCE_PX, TOLERANCE_SHARE * side):
            raise AnnotationError(
                where,
                f"polygon reaches {px:.4g} px beyond the {end} border, image is {height}x{width} (height x width)",
                "clip it to the image, or export it for this image's size",
            )
    for end, px in beyond.items():
        if px > SILENT_PX:
            tell(f"the outline reaches beyond the {end} border and is clipped", f"by {px:.1f} px")


def _check_length(rings: list[Ring], where: object) -> None:
    steps = sum(
        float(np.abs(np.diff(ring, axis=0, append=ring[:1])).max(axis=1).sum()) * SUBPIXELS + len(ring)
        for ring in rings
    )
    if steps > MAX_STEPS:
        raise AnnotationError(
            where,
            f"polygon is {steps / SUBPIXELS / 1e6:.0f} million pixels long, no drawn outline",
            "export it again, or simplify it",
        )


def _signed_area(points: Ring) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _crossings(ring: Ring, size_hw: tuple[int, int]) -> Edges:
    """Return where an outline crosses the middle of a column of pixels, as column-major positions.

    This is `rleFrPoly` of COCO's maskApi.c, kept to its arithmetic, rounding towards zero included.
    """
    corners = np.trunc(SUBPIXELS * ring + 0.5).astype(np.int64)
    begin, end = corners, np.roll(corners, -1, axis=0)
    counts = np.abs(end - begin).max(axis=1) + 1
    positions: list[Edges] = []
    last: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    cuts = np.searchsorted(np.cumsum(counts), np.arange(_CHUNK_STEPS, int(counts.sum()), _CHUNK_STEPS), side="left") + 1
    bounds = np.unique(np.concatenate([[0], cuts, [len(counts)]]))
    for first, stop in pairwise(bounds.tolist()):
        u, v = _walk(begin[first:stop], end[first:stop], counts[first:stop])
        if last is not None:
            u, v = np.concatenate([last[0], u]), np.concatenate([last[1], v])
        last = (u[-1:], v[-1:])
        positions.append(_column_crossings(u, v, size_hw))
    return np.concatenate(positions)


def _walk(
    begin: NDArray[np.int64], end: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the subpixels (u, v) along sides, both ends of each included."""
    delta = np.abs(end - begin)
    is_flat = delta[:, 0] >= delta[:, 1]
    flip = np.where(is_flat, begin[:, 0] > end[:, 0], begin[:, 1] > end[:, 1])
    start = np.where(flip[:, None], end, begin)
    stop = np.where(flip[:, None], begin, end)
    span = stop - start
    slope = np.where(is_flat, span[:, 1], span[:, 0]) / np.maximum(np.where(is_flat, delta[:, 0], delta[:, 1]), 1)
    side = np.repeat(np.arange(len(counts)), counts)
    step = np.arange(len(side)) - np.repeat(np.cumsum(counts) - counts, counts)
    step = np.where(flip[side], counts[side] - 1 - step, step)
    flat = is_flat[side]
    along = step + np.where(flat, start[side, 0], start[side, 1])
    across = (np.where(flat, start[side, 1], start[side, 0]) + slope[side] * step + 0.5).astype(np.int64)
    return np.where(flat, along, across), np.where(flat, across, along)


def _column_crossings(u: NDArray[np.int64], v: NDArray[np.int64], size_hw: tuple[int, int]) -> Edges:
    height, width = size_hw
    moved = u[1:] - u[:-1]
    lower = np.minimum(u[1:], u[:-1])
    crossing = np.flatnonzero((moved != 0) & (lower % SUBPIXELS == SUBPIXELS // 2) & (lower >= 0))
    column = (lower[crossing] - SUBPIXELS // 2) // SUBPIXELS
    crossing, column = crossing[column < width], column[column < width]
    above = np.minimum(v[1:], v[:-1])[crossing]
    row = np.clip(-((SUBPIXELS // 2 - above) // SUBPIXELS), 0, height)
    return column * height + row


def _filled(positions: Edges) -> Edges:
    """Return the edges of what lies inside by COCO's rule: an odd number of crossings above."""
    places = np.sort(positions)
    is_last = np.append(places[1:] != places[:-1], True)[: len(places)]
    inside = np.flatnonzero(is_last) % 2 == 0
    places = places[is_last]
    return places[inside != np.append(False, inside[:-1])[: len(places)]]


def _crosses_itself(ring: Ring) -> bool:
    """Check whether two sides of an outline cross; one that touches or retraces itself, as a line's does, is fine.

    GEOS says in 5 ms of an outline of 100,000 points whether it is a valid polygon; the sides of one that is not are
    looked at by pairs whose boxes meet, a few at a time, up to the first crossing.
    """
    if shapely.is_valid(shapely.polygons(np.concatenate([ring, ring[:1]]))):
        return False
    ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
    sides: Any = shapely.linestrings(np.stack([ring, np.roll(ring, -1, axis=0)], axis=1))
    tree = shapely.STRtree(sides)
    chunks = (sides[first : first + _CHUNK_SIDES] for first in range(0, len(sides), _CHUNK_SIDES))
    return any(tree.query(chunk, predicate="crosses").size for chunk in chunks)


def _joined(filled: Sequence[Edges], areas: Sequence[float]) -> Edges:
    """Return the edges of all rings together, holes taken out."""
    boxes = np.array([(edges[0], edges[-1]) if len(edges) else (0, 0) for edges in filled], np.int64)
    area = np.array(areas)
    holes: set[int] = set()
    for index, edges in enumerate(filled):
        around = (area * np.sign(area[index]) < 0) & (np.abs(area) > abs(area[index]))
        around &= (boxes[:, 0] <= boxes[index, 0]) & (boxes[:, 1] >= boxes[index, 1])
        if any(_contains(filled[int(other)], edges) for other in np.flatnonzero(around)):
            holes.add(index)
    return _combined(
        [edges for index, edges in enumerate(filled) if index not in holes], [filled[index] for index in sorted(holes)]
    )


def _combined(parts: Sequence[Edges], holes: Sequence[Edges]) -> Edges:
    """Return the edges of what lies in any of the parts and in none of the holes."""
    every = [*parts, *holes]
    places = np.concatenate(every)
    steps = np.concatenate([np.resize(np.array([1, -1]), len(edges)) for edges in every])
    of_hole = np.repeat([False] * len(parts) + [True] * len(holes), [len(edges) for edges in every])
    order = np.argsort(places, kind="stable")
    places, steps, of_hole = places[order], steps[order], of_hole[order]
    is_last = np.append(places[1:] != places[:-1], True)[: len(places)]
    num_parts, num_holes = (
        np.cumsum(np.where(of_hole, 0, steps))[is_last],
        np.cumsum(np.where(of_hole, steps, 0))[is_last],
    )
    places, inside = places[is_last], (num_parts > 0) & (num_holes == 0)
    return places[inside != np.append(False, inside[:-1])[: len(inside)]]


def _contains(outer: Edges, inner: Edges) -> bool:
    """Check whether every pixel of `inner` is one of `outer`."""
    place = np.searchsorted(outer, inner[0::2], side="right")
    if not len(inner) or not (place % 2 == 1).all():
        return not len(inner)
    return bool((inner[1::2] <= outer[place]).all())
