"""Convert masks to outlines that readers fill to exactly the same mask: one closed ring per part, holes cut open.

Most readers fill every ring of an instance and join the results, so a hole cannot be a ring of its own. A ring follows
the edges of pixels, `INSET_PX` inside them. Two conventions fill it to the same pixels:

- pixel (x, y) covers x to x + 1, and belongs to the mask if its centre is inside: pycocotools, exact areas;
- coordinates are rounded down to pixels, and the outline itself belongs to the mask: OpenCV's `fillPoly` and Pillow's
  `polygon` after a cast to integers, as Ultralytics and labelme do.

No ring suits two other conventions as well. Readers that round to the nearest pixel and draw the outline (supervision)
see one more row and column, at the bottom and the right. Readers with pixel centres at whole numbers that exclude the
outline (`skimage.draw.polygon`) lose a row and a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from defectory.errors import AnnotationError
from defectory.formats.polygons import polygons_to_rle
from defectory.rle import Rle, area_px, decode_crop, edges_of, union

INSET_PX = 0.005
"""Large enough for safe rounding down, and less than 1% of the area of a line one pixel wide."""
SLIT_AT, SLIT_PX = 0.4, 0.002
"""The position of a slit in its row of pixels, and its width.

COCO's tools round both sides to the same fifth of a pixel.
"""
MAX_CORNERS = 100_000
"""Outlines with more corners are refused: readers become slow, and a mask like this is noise."""
MAX_NEAREST = 64
"""With more parts than this, each part is joined to its neighbour from left to right."""
MIN_IOU, MAX_AREA_CHANGE, CHECKED_FROM_PX = 0.98, 0.02, 50
"""Minimum IoU and maximum change of area of an outline, checked for masks of at least this many pixels."""
Ring = NDArray[np.float64]
Corners = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """The rings of a mask, or the reason for keeping run lengths.

    Attributes:
        rings: float64 [n,2] each, x and y in pixels, clockwise as displayed; empty if the mask is kept as run lengths.
        reason: why the mask is kept as run lengths; empty if it is not.
    """

    rings: tuple[Ring, ...] = ()
    reason: str = ""

    @property
    def flat(self) -> list[list[float]]:
        """Return the rings in COCO's form: lists of x, y, x, y."""
        return [ring.reshape(-1).tolist() for ring in self.rings]


def rle_to_outlines(rle: Rle) -> Outlines:
    """Return the rings of a mask, checked by filling them again; the union of the filled rings is the mask.

    Args:
        rle: any mask; an empty one, or one whose outline is too long or inexact, gets a reason instead.
    """
    if not len(edges_of(rle)):
        return Outlines(reason="empty mask")
    crop, (x0, y0) = decode_crop(rle)
    padded = np.pad(crop, 1)
    corners = _corners(padded)
    if len(corners) > MAX_CORNERS:
        return Outlines(reason=f"outline with more than {MAX_CORNERS:,} corners")
    rings = tuple(np.round(ring + np.array([x0, y0]), 3) for ring in _rings(padded, corners))
    reason = _fault([ring.reshape(-1).tolist() for ring in rings], rle)
    return Outlines(reason=reason) if reason else Outlines(rings=rings)


def rle_to_polygons(rle: Rle) -> list[list[float]]:
    """Return the rings of a mask in COCO's form; empty if it must be kept as run lengths (see `rle_to_outlines`)."""
    return rle_to_outlines(rle).flat


def rle_to_ring(rle: Rle) -> Outlines:
    """Return one ring for the whole mask, for formats with one outline per instance.

    Parts are joined by lines that run back and forth. Readers that fill by pixel centres do not see them; readers that
    also draw the outline get a line one pixel wide between the parts.
    """
    found = rle_to_outlines(rle)
    if len(found.rings) < 2:
        return found
    ring = _joined(found.rings)
    reason = _fault([ring.reshape(-1).tolist()], rle)
    return Outlines(reason=reason) if reason else Outlines(rings=(ring,))


def _fault(rings: list[list[float]], rle: Rle) -> str:
    """Return the problem with rings; empty if filling them reproduces the mask."""
    try:
        filled = polygons_to_rle(rings, rle.size_hw, "outline")
    except AnnotationError as error:
        return error.found
    if filled == rle:
        return ""
    area, joined_px = area_px(rle), area_px(union([filled, rle]))
    overlap = (area + area_px(filled) - joined_px) / joined_px
    if area < CHECKED_FROM_PX or (overlap >= MIN_IOU and abs(area_px(filled) - area) <= MAX_AREA_CHANGE * area):
        return ""
    return f"its outline has an IoU of {overlap:.3f} with the mask"


def _corners(mask: NDArray[np.bool_]) -> Corners:
    """Return the corners of a mask with a border of False, int64 [n,6]: y, x without that border, and four sides.

    `right` and `below` are the sides of the vertical and the horizontal edge that the mask lies on; `down` and `east`
    are the directions of these edges from the corner. If two pixels touch only at a corner, there are two corners, one
    for each.
    """
    north_west, north_east = mask[:-1, :-1], mask[:-1, 1:]
    south_west, south_east = mask[1:, :-1], mask[1:, 1:]
    count = north_west.astype(np.int8) + north_east + south_west + south_east
    touching = (count == 2) & (north_west == south_east)
    found: list[Corners] = []
    quarters = ((north_west, 0, 0), (north_east, 0, 1), (south_west, 1, 0), (south_east, 1, 1))
    for quarter, is_south, is_east in quarters:
        # the one pixel of three that is not in the mask, or the only one that is
        inner, outer = (count == 3) & ~quarter, ((count == 1) | touching) & quarter
        for places, of_mask in ((outer, True), (inner, False)):
            y, x = np.nonzero(places)
            right, below = bool(is_east) == of_mask, bool(is_south) == of_mask
            sides = np.tile(np.array([right, below, is_south, is_east], np.int64), (len(y), 1))
            found.append(np.concatenate([np.stack([y, x], axis=1), sides], axis=1))
    return np.concatenate(found).astype(np.int64)


def _partners(line: NDArray[np.int64], along: NDArray[np.int64], ahead: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the other end of the straight edge of each corner: along a line, edges begin and end alternately."""
    order = np.lexsort((ahead, along, line))
    partners = np.empty(len(order), np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _rings(mask: NDArray[np.bool_], corners: Corners) -> list[Ring]:
    """Return one ring for each part of a mask (pixels of a part share a side), with its holes cut open."""
    y, x, right, below, down, east = corners.T
    vertical, horizontal = _partners(x, y, down), _partners(y, x, east)
    points = np.stack([x + np.where(right, INSET_PX, -INSET_PX), y + np.where(below, INSET_PX, -INSET_PX)], axis=1)
    cycles = _cycles(vertical, horizontal, down, right)
    # at its leftmost edge, a part has the mask to the right, and a hole has it to the left
    lefts = [cycle[int(np.argmin(x[cycle]))] for cycle in cycles]
    cuts = _Cuts(mask, corners, vertical)
    outer: list[NDArray[np.int64]] = []
    for cycle, left in zip(cycles, lefts, strict=True):
        if right[left]:
            outer.append(cycle)
        else:
            cuts.add(cycle, left)
    return [cuts.walk(cycle, points) for cycle in outer]


def _cycles(
    vertical: NDArray[np.int64], horizontal: NDArray[np.int64], down: NDArray[np.int64], right: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Return the corners of each closed outline in order, the mask to the right, vertical edges first."""
    to_vertical, to_horizontal = vertical.tolist(), horizontal.tolist()
    # upwards if the mask is to the right, downwards if it is to the left
    starts = (down == 1) != (right == 1)
    seen = np.zeros(len(vertical), bool).tolist()
    cycles: list[NDArray[np.int64]] = []
    for start in np.flatnonzero(starts).tolist():
        if seen[start]:
            continue
        cycle: list[int] = []
        at = start
        while not seen[at]:
            end = to_vertical[at]
            seen[at] = seen[end] = True
            cycle += [at, end]
            at = to_horizontal[end]
        cycles.append(np.array(cycle, np.int64))
    return cycles


class _Cuts:
    """Slits from holes to the outlines left of them, each within one pixel row of the mask."""

    def __init__(self, mask: NDArray[np.bool_], corners: Corners, vertical: NDArray[np.int64]) -> None:
        self._mask, self._x, self._y, self._vertical = mask, corners[:, 1], corners[:, 0], vertical
        # edges with the mask to the right are followed upwards, from their lower end
        lower = np.flatnonzero((corners[:, 2] == 1) & (corners[:, 4] == 0))
        order = lower[np.lexsort((self._y[lower], self._x[lower]))]
        self._edges = order
        self._keys = self._x[order] * (mask.shape[0] + 1) + self._y[order]
        self._holes: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}

    def add(self, hole: NDArray[np.int64], left: int) -> None:
        """Cut a hole open from its leftmost edge, which contains corner `left`."""
        other = int(self._vertical[left])
        row, column = int(min(self._y[left], self._y[other])), int(self._x[left])
        start = column - int(np.argmin(self._mask[row + 1, : column + 1][::-1]))
        # the edge at x = start that extends from above this row to below it
        place = int(np.searchsorted(self._keys, start * (self._mask.shape[0] + 1) + row, side="right"))
        at = int(np.flatnonzero(hole == left)[0])
        first = at - at % 2
        self._holes.setdefault(int(self._edges[place]), []).append((row, np.roll(hole, -first)))

    def walk(self, cycle: NDArray[np.int64], points: Ring) -> Ring:
        """Return the corners of an outline, including the holes that open into it, and recursively their holes."""
        ring: list[tuple[float, float]] = []
        pending: list[int | tuple[float, float]] = list(reversed(cycle.tolist()))
        while pending:
            step = pending.pop()
            if isinstance(step, tuple):
                ring.append(step)
                continue
            ring.append((float(points[step, 0]), float(points[step, 1])))
            # from the lowest upwards, in the direction of the edge
            for row, hole in sorted(self._holes.get(step, ()), key=lambda cut: cut[0]):
                begin, end = hole[0], hole[1:].tolist()
                near, far = float(points[step, 0]), float(points[int(begin), 0])
                upper, under = row + SLIT_AT, row + SLIT_AT + SLIT_PX
                # the hole's leftmost edge is followed downwards, and the path enters and leaves within it
                pending += reversed([(near, under), (far, under), *end, int(begin), (far, upper), (near, upper)])
        return np.array(ring, np.float64)


def _joined(rings: Sequence[Ring]) -> Ring:
    """Join rings by lines back and forth between their nearest corners."""
    entries: list[list[tuple[int, int, int]]] = [[] for _ in rings]
    for host, from_corner, other, to_corner in _joints(rings):
        entries[host].append((from_corner, other, to_corner))
    result: list[NDArray[np.float64]] = []
    pending: list[tuple[int, int] | NDArray[np.float64]] = [(0, 0)]
    while pending:
        step = pending.pop()
        if isinstance(step, np.ndarray):
            result.append(step)
            continue
        index, first = step
        order = [*range(first, len(rings[index])), *range(first)]
        at_corner: dict[int, list[tuple[int, int]]] = {}
        for corner, other, to_corner in entries[index]:
            at_corner.setdefault(corner, []).append((other, to_corner))
        steps: list[tuple[int, int] | NDArray[np.float64]] = []
        for corner in order:
            steps.append(rings[index][corner])
            for inner in at_corner.get(corner, ()):
                steps += [inner, rings[index][corner]]
        # return to the starting corner, unless the ring is the whole
        steps += [rings[index][first]] if index else []
        pending += reversed(steps)
    return np.array(result, np.float64)


def _joints(rings: Sequence[Ring]) -> list[tuple[int, int, int, int]]:
    """Return how rings are joined, from the first on: a ring, its corner, the ring joined to it, its corner."""
    if len(rings) > MAX_NEAREST:
        order = [0, *sorted(range(1, len(rings)), key=lambda index: tuple(rings[index].min(axis=0)))]
        pairs = [(one, other, _nearest(KDTree(rings[one]), rings[other])) for one, other in pairwise(order)]
        return [(one, from_corner, other, to_corner) for one, other, (_, from_corner, to_corner) in pairs]
    joints: list[tuple[int, int, int, int]] = []
    nearest: dict[int, tuple[float, int, int, int]] = {}
    left, last = set(range(1, len(rings))), 0
    while left:
        tree = KDTree(rings[last])
        for index in left:
            distance, from_corner, to_corner = _nearest(tree, rings[index])
            if index not in nearest or distance < nearest[index][0]:
                nearest[index] = distance, last, from_corner, to_corner
        last = min(left, key=lambda index: nearest[index])
        left.discard(last)
        _, host, from_corner, to_corner = nearest[last]
        joints.append((host, from_corner, last, to_corner))
    return joints


def _nearest(tree: KDTree, ring: Ring) -> tuple[float, int, int]:
    """Return the distance of a ring to another, and the nearest corners of the other and of the ring."""
    found: Any = tree.query(ring)
    distances, corners = found
    place = int(np.argmin(distances))
    return float(distances[place]), int(corners[place]), place
