"""Where on a tile a mask goes.

`learned` placement: how each class lies to the part's holes and edges is counted in train, and masks are placed so that
they lie to those of the pool tile in the same shares. A crack that starts at a hole in train is no crack in the open in
a draft.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.geometry import distance_to
from defectory.surface import solid_pixels

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
MAX_TRIES = 24
NUM_CANDIDATES, NUM_RELATIONS_TRIED = 48, 3
"""Learned placement tries so many places for a relation, and so many relations, before any place will do."""
MARGIN_PX = 2
"""Pixels of the tile's border that stay free."""
GAP_PX = 2
"""Pixels that stay free between two defects, so that they do not grow into one."""
TOUCH_PX, CONTACT_PX, NEAR_PX = 2.5, 3.5, 10.0
CONTACT_SHARES = (0.25, 0.5)
MAX_SLANT = np.pi / 4
"""An end at a border points at it within so many radians."""
MAX_GAP_SHARE = 0.6
"""What a hole cut from a mask is at most so much of it: what lies between the ends of a thin crack around a large hole
is no defect.
"""
RELATIONS = (
    "end at a hole",
    "along a hole",
    "around a hole",
    "end at the outside",
    "along the outside",
    "around the outside",
    "near either",
    "in the open",
)
"""How a mask lies to the part's borders: it touches a hole (dark, enclosed) or what is outside the part (dark, cut by
the tile's border) with little, more or most of itself, is near one, or neither.
"""
NEAR_EITHER, IN_THE_OPEN = len(RELATIONS) - 2, len(RELATIONS) - 1
NUM_CONTACTS = len(CONTACT_SHARES) + 1


@dataclass(frozen=True, kw_only=True)
class Borders:
    """Distances in pixels, float32 [H,W], to the nearest hole and to the nearest pixel outside the part."""

    to_hole: Field
    to_outside: Field

    def pixels(self, relation: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of surface pixels at the border that a relation (index into RELATIONS) is to, or at its
        distance.
        """
        nearest = np.minimum(self.to_hole, self.to_outside)
        if relation == IN_THE_OPEN:
            ys, xs = np.nonzero(nearest > NEAR_PX)
        elif relation == NEAR_EITHER:
            ys, xs = np.nonzero((nearest > TOUCH_PX) & (nearest <= NEAR_PX))
        else:
            distance = self.to_hole if relation < NUM_CONTACTS else self.to_outside
            ys, xs = np.nonzero((nearest > 0) & (distance < 1.5))
        return ys, xs

    def towards(self, relation: int, y: int, x: int) -> float:
        """Give the direction, radians from the x axis to the y axis, from a surface pixel to the border that a touching
        relation is to.
        """
        distance = self.to_hole if relation < NUM_CONTACTS else self.to_outside
        rows, columns = (
            np.clip([at - 1, at + 1], 0, size - 1) for at, size in zip((y, x), distance.shape, strict=True)
        )
        return float(
            np.arctan2(distance[rows[0], x] - distance[rows[1], x], distance[y, columns[0]] - distance[y, columns[1]])
        )


def borders_of(solid: Mask) -> Borders:
    """Tell holes from the outside: a hole is enclosed, the outside is cut by the tile's border."""
    _, labels = cv2.connectedComponents((~solid).astype(np.uint8), connectivity=4)
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    outside = np.isin(labels, rim[rim > 0])
    return Borders(to_hole=distance_to(~solid & ~outside), to_outside=distance_to(outside))


@dataclass(frozen=True, kw_only=True)
class Site:
    """A tile as a place for defects: where they may lie, bool [H,W], and the part's borders."""

    allowed: Mask
    borders: Borders


def site_of(image: NDArray[np.uint8], valid_hw: tuple[int, int]) -> Site:
    """Give a tile RGB uint8 [H,W,3] as a place for defects: on the surface and off the tile's border."""
    solid = solid_pixels(image, valid_hw)
    allowed = np.zeros_like(solid)
    inner = slice(MARGIN_PX, valid_hw[0] - MARGIN_PX), slice(MARGIN_PX, valid_hw[1] - MARGIN_PX)
    allowed[inner] = solid[inner]
    return Site(allowed=allowed, borders=borders_of(solid))


def filled_where_cut(mask: Mask, borders: Borders) -> Mask:
    """Give a mask without what holes and the outside of its own part cut from it: elsewhere on a part nothing is there
    to cut it so.

    Where a crack ends at a hole its end is hollow, where it crosses one it is in two pieces, and a stain around one is
    a ring. Filled is what lies between a mask's pixels at the hole.

    Args:
        mask: bool [H,W].
        borders: of its tile.
    """
    result = mask.copy()
    for cut in (borders.to_hole == 0, borders.to_outside == 0):
        _, labels = cv2.connectedComponents(cut.astype(np.uint8), connectivity=4)
        for label in np.unique(labels[labels > 0]):
            distance = distance_to(labels == label)
            gap = (distance <= TOUCH_PX) & ~mask & _hull(mask & (distance <= CONTACT_PX))
            if gap.sum() <= MAX_GAP_SHARE * mask.sum():
                result |= gap
    return result


def _hull(mask: Mask) -> Mask:
    """Give the convex hull of a mask's pixels."""
    result = np.zeros(mask.shape, np.uint8)
    points = np.argwhere(mask)[:, ::-1]
    if len(points):
        cv2.fillConvexPoly(result, cv2.convexHull(np.ascontiguousarray(points.astype(np.int32))), 1)
    return result > 0


def relation_of(mask: Mask, borders: Borders) -> int:
    """Give the index into RELATIONS of a mask bool [H,W], not empty."""
    to_hole, to_outside = borders.to_hole[mask], borders.to_outside[mask]
    nearest = min(float(to_hole.min()), float(to_outside.min()))
    if nearest > NEAR_PX:
        return IN_THE_OPEN
    if nearest > TOUCH_PX:
        return NEAR_EITHER
    is_hole = to_hole.min() <= to_outside.min()
    contact = float(((to_hole if is_hole else to_outside) <= CONTACT_PX).mean())
    return (0 if is_hole else NUM_CONTACTS) + int(np.searchsorted(CONTACT_SHARES, contact))


def relation_shares(observed: Iterable[tuple[int, int, float]]) -> dict[int, NDArray[np.float64]]:
    """Give per class the share of each relation, float64 [8], from class, relation and weight of masks; each class
    leans on all by one mask.
    """
    counts: dict[int, NDArray[np.float64]] = {}
    for category_id, relation, weight in observed:
        counts.setdefault(category_id, np.zeros(len(RELATIONS)))[relation] += weight
    if not counts:
        return {}
    pooled = np.sum(list(counts.values()), axis=0)
    pooled = pooled / pooled.sum()
    return {category_id: (count + pooled) / (count.sum() + 1) for category_id, count in counts.items()}


def place_like(
    mask: Mask, shares: NDArray[np.float64], *, site: Site, taken: Mask, rng: np.random.Generator
) -> Mask | None:
    """Place a cropped mask where it lies to the part's borders as `shares` of RELATIONS say; where no such place is
    found, as `place`.

    Args:
        mask: bool [h,w], cropped to its box.
        shares: float64 [8].
        site: the tile.
        taken: bool [H,W], where a defect lies already.
        rng: source of randomness.
    """
    allowed, size_hw = site.allowed, (site.allowed.shape[0], site.allowed.shape[1])
    if not allowed.any():
        return None
    own = np.argwhere(mask)
    for _ in range(NUM_RELATIONS_TRIED):
        wanted = int(rng.choice(len(RELATIONS), p=shares))
        touches = wanted < NEAR_EITHER
        ys, xs = site.borders.pixels(wanted)
        for candidate in range(NUM_CANDIDATES if len(ys) else 0):
            at = int(rng.integers(len(ys)))
            if touches and wanted % NUM_CONTACTS == 0:
                # an end of the mask is laid there, its outermost pixel towards the border, so that it ends at a hole
                # and does not cross it
                angle = site.borders.towards(wanted, int(ys[at]), int(xs[at])) + rng.uniform(-MAX_SLANT, MAX_SLANT)
                y, x = own[int((own @ np.array([np.sin(angle), np.cos(angle)])).argmax())]
            else:
                y, x = own[int(rng.integers(len(own)))]
            result = _pasted(mask, int(ys[at] - y), int(xs[at] - x), size_hw) & allowed
            # later candidates settle for more that holes cut off
            loose = touches and candidate >= NUM_CANDIDATES // 2
            if (
                result.sum() >= (0.75 if loose else 0.9) * len(own)
                and relation_of(result, site.borders) == wanted
                and not _crowds(result, taken)
            ):
                return result
    return place(mask, size_hw=size_hw, allowed=allowed, taken=taken, rng=rng)


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
        y = int(
            rng.integers(
                low_y - (height // 2 if loose else 0), max(low_y, high_y - (height // 2 if loose else height)) + 1
            )
        )
        x = int(
            rng.integers(
                low_x - (width // 2 if loose else 0), max(low_x, high_x - (width // 2 if loose else width)) + 1
            )
        )
        result = _pasted(mask, y, x, size_hw) & allowed
        visible = int(result.sum())
        if visible < (0.4 if loose else 0.9) * mask.sum() or visible == 0:
            continue
        if _crowds(result, taken):
            continue
        return result
    return None


def _crowds(mask: Mask, taken: Mask) -> bool:
    """Tell whether a mask comes nearer to others than the gap."""
    if not taken.any():
        return False
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((2 * GAP_PX + 1, 2 * GAP_PX + 1), np.uint8)) > 0
    return bool((grown & taken).any())


def _pasted(mask: Mask, y: int, x: int, size_hw: tuple[int, int]) -> Mask:
    result = np.zeros(size_hw, bool)
    y0, x0, y1, x1 = max(0, y), max(0, x), min(size_hw[0], y + mask.shape[0]), min(size_hw[1], x + mask.shape[1])
    if y1 > y0 and x1 > x0:
        result[y0:y1, x0:x1] = mask[y0 - y : y1 - y, x0 - x : x1 - x]
    return result
