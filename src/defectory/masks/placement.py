"""Placement: where on a tile a mask goes.

With `learned` placement, the relations of each class's masks to the part's holes and edges are counted in train. Masks
are then placed on pool tiles so that the relations have the same shares. For example, a crack that starts at a hole in
train does not become a crack in the open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.geometry import distance_to
from defectory.surface import solid_pixels

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
MAX_TRIES = 24
NUM_CANDIDATES, NUM_RELATIONS_TRIED = 48, 3
"""Numbers of positions to try for one relation and of relations to try, before any position is accepted."""
MARGIN_PX = 2
"""Width of the tile's border that stays free."""
BEYOND_PX = 1 << 20
"""Farther than any mask reaches."""
GAP_PX = 2
"""Minimum gap between two defects, so that they do not merge."""
TOUCH_PX, CONTACT_PX, NEAR_PX = 2.5, 3.5, 10.0
CONTACT_SHARES = (0.25, 0.5)
MAX_SLANT = np.pi / 4
"""Maximum angle, radians, between an end at a border and the direction of that border."""
MAX_GAP_SHARE = 0.6
"""Maximum share of a mask's area that filling may add.

Without the limit, a thin crack around a large hole would fill the space between its ends.
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
"""Relations of a mask to the part's borders.

A mask touches a hole (dark, enclosed) or the outside of the part (dark, cut by the tile's border) with a little, more
or most of itself, or is near one, or neither.
"""
NEAR_EITHER, IN_THE_OPEN = len(RELATIONS) - 2, len(RELATIONS) - 1
NUM_CONTACTS = len(CONTACT_SHARES) + 1


@dataclass(frozen=True, kw_only=True)
class Borders:
    """Distances in pixels, float32 [H,W], to the nearest hole and to the nearest pixel outside the part."""

    to_hole: Field
    to_outside: Field

    def pixels(self, relation: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of surface pixels at the border or distance of a relation (index in RELATIONS)."""
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
        """Return the direction from a surface pixel to the border that a touching relation refers to.

        The direction is in radians, from the x axis to the y axis.
        """
        distance = self.to_hole if relation < NUM_CONTACTS else self.to_outside
        rows, columns = (
            np.clip([at - 1, at + 1], 0, size - 1) for at, size in zip((y, x), distance.shape, strict=True)
        )
        return float(
            np.arctan2(distance[rows[0], x] - distance[rows[1], x], distance[y, columns[0]] - distance[y, columns[1]])
        )


def borders_of(solid: Mask) -> Borders:
    """Separate holes from the outside: a hole is enclosed, the outside is cut by the tile's border."""
    _, labels = cv2.connectedComponents((~solid).astype(np.uint8), connectivity=4)
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    outside = np.isin(labels, rim[rim > 0])
    return Borders(to_hole=distance_to(~solid & ~outside), to_outside=distance_to(outside))


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Whether the image ends at each side of a tile."""

    top: bool
    left: bool
    bottom: bool
    right: bool


@dataclass(frozen=True, kw_only=True)
class Site:
    """A tile as a place for defects.

    Attributes:
        allowed: where they may lie, bool [H,W].
        borders: of the part.
        within: rectangle (y0, x0, y1, x1) that a mask's box must lie in; None allows cuts at the tile's border.
    """

    allowed: Mask
    borders: Borders
    within: tuple[int, int, int, int] | None = None

    def limited_to(self, region: Mask | None) -> Site:
        """Return the site with defects allowed only in a region bool [H,W]; None allows every place."""
        return self if region is None else replace(self, allowed=self.allowed & region)


def site_of(image: NDArray[np.uint8], valid_hw: tuple[int, int]) -> Site:
    """Build a site from a tile RGB uint8 [H,W,3]: defects may lie on the surface, off the tile's border."""
    solid = solid_pixels(image, valid_hw)
    allowed = np.zeros_like(solid)
    inner = slice(MARGIN_PX, valid_hw[0] - MARGIN_PX), slice(MARGIN_PX, valid_hw[1] - MARGIN_PX)
    allowed[inner] = solid[inner]
    return Site(allowed=allowed, borders=borders_of(solid))


def site_of_square(image: NDArray[np.uint8], valid_hw: tuple[int, int], *, ends: Sides, margin_px: int) -> Site:
    """Build a site from a square of a larger image, RGB uint8 [H,W,3], in which every mask lies whole.

    A mask keeps `margin_px` to the square's sides, except where the image ends: there it may reach the border, or
    continue beyond it.
    """
    solid = solid_pixels(image, valid_hw)
    height, width = valid_hw
    inner = (
        0 if ends.top else margin_px,
        0 if ends.left else margin_px,
        height if ends.bottom else height - margin_px,
        width if ends.right else width - margin_px,
    )
    allowed = np.zeros_like(solid)
    part = slice(inner[0], inner[2]), slice(inner[1], inner[3])
    allowed[part] = solid[part]
    within = (
        -BEYOND_PX if ends.top else inner[0],
        -BEYOND_PX if ends.left else inner[1],
        BEYOND_PX if ends.bottom else inner[2],
        BEYOND_PX if ends.right else inner[3],
    )
    return Site(allowed=allowed, borders=borders_of(solid), within=within)


def filled_where_cut(mask: Mask, borders: Borders) -> Mask:
    """Fill the parts of a mask that holes and the outside of its own part cut away.

    Elsewhere on a part, nothing would cut the mask in this way. A crack that ends at a hole has a hollow end, one that
    crosses a hole is in two pieces, and a stain around a hole is a ring. The area between a mask's pixels at the hole
    is filled.

    Args:
        mask: bool [H,W].
        borders: borders of its tile.
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
    """Return the convex hull of a mask's pixels."""
    result = np.zeros(mask.shape, np.uint8)
    points = np.argwhere(mask)[:, ::-1]
    if len(points):
        cv2.fillConvexPoly(result, cv2.convexHull(np.ascontiguousarray(points.astype(np.int32))), 1)
    return result > 0


def relation_of(mask: Mask, borders: Borders) -> int:
    """Return the index into RELATIONS for a mask bool [H,W], not empty."""
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
    """Return the share of each relation by class, float64 [8], from the class, relation and weight of each mask.

    The distribution over all classes counts as one additional mask in each class.
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
    """Place a cropped mask at the part's borders with the given `shares` of RELATIONS; fall back to `place`.

    Args:
        mask: bool [h,w], cropped to its box.
        shares: float64 [8].
        site: the tile.
        taken: bool [H,W], where a defect already lies.
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
                # put an end of the mask here, with its outermost pixel towards the border, so that it ends at a hole
                # and does not cross it
                angle = site.borders.towards(wanted, int(ys[at]), int(xs[at])) + rng.uniform(-MAX_SLANT, MAX_SLANT)
                y, x = own[int((own @ np.array([np.sin(angle), np.cos(angle)])).argmax())]
            else:
                y, x = own[int(rng.integers(len(own)))]
            corner_yx = int(ys[at] - y), int(xs[at] - x)
            if not _lies_within(mask, corner_yx, site.within):
                continue
            result = _pasted(mask, *corner_yx, size_hw) & allowed
            # later candidates allow holes to cut off more of the mask
            loose = touches and candidate >= NUM_CANDIDATES // 2
            if (
                result.sum() >= (0.75 if loose else 0.9) * len(own)
                and relation_of(result, site.borders) == wanted
                and not _crowds(result, taken)
            ):
                return result
    return place(mask, size_hw=size_hw, allowed=allowed, taken=taken, rng=rng, within=site.within)


def place(
    mask: Mask,
    *,
    size_hw: tuple[int, int],
    allowed: Mask,
    taken: Mask,
    rng: np.random.Generator,
    within: tuple[int, int, int, int] | None = None,
) -> Mask | None:
    """Place a cropped mask on allowed pixels of a tile, clear of other defects.

    Args:
        mask: bool [h,w], cropped to its box.
        size_hw: size of the tile, pixels.
        allowed: bool [H,W], where a defect may lie.
        taken: bool [H,W], where one already lies.
        rng: source of randomness.
        within: rectangle that the mask's box must lie in, as for `Site`.

    Returns:
        bool [H,W], or None if no position was found. A mask larger than the allowed window is cut at its border, unless
        it must lie within a rectangle.
    """
    height, width = mask.shape
    ys, xs = np.nonzero(allowed)
    if len(ys) == 0:
        return None
    low_y, high_y, low_x, high_x = int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1
    for attempt in range(MAX_TRIES):
        # later tries accept a mask that is cut by the border
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
        if not _lies_within(mask, (y, x), within):
            continue
        result = _pasted(mask, y, x, size_hw) & allowed
        visible = int(result.sum())
        if visible < (0.4 if loose else 0.9) * mask.sum() or visible == 0:
            continue
        if _crowds(result, taken):
            continue
        return result
    return None


def _lies_within(mask: Mask, corner_yx: tuple[int, int], within: tuple[int, int, int, int] | None) -> bool:
    if within is None:
        return True
    (y, x), (height, width) = corner_yx, mask.shape
    return within[0] <= y and within[1] <= x and y + height <= within[2] and x + width <= within[3]


def _crowds(mask: Mask, taken: Mask) -> bool:
    """Return whether a mask is closer to other masks than the gap."""
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
