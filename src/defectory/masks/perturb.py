"""Small random shape changes of a mask: affine, elastic, width.

Width distinguishes one kind of crack from another more often than length, and it affects mask scores. Therefore the
width stays within a small share of the training mask's, whatever the affine map does (decision 017).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.masks.config import MaskConfig, SeverityBy
from defectory.rle import box_xyxy

Mask = NDArray[np.bool_]
SHAPE_SETTINGS = ("rotate_degrees", "scale_range", "shear", "flip", "elastic_px", "thickness_share")
"""Settings of section `masks` that `perturb` reads, and no others."""
AREA_BOUNDS = (0.4, 2.5)
"""Allowed area ratios; a perturbation beyond them is drawn again, and after some tries the mask is left unchanged."""
MAX_TRIES = 6
SUPERSAMPLE = 4
"""Supersampling factor of shape changes: on the pixel grid, a thin crack could not change by half a pixel."""
MAX_FIELD_PX = 128
"""Longest side of the grid on which an elastic map is drawn; that of a larger mask is drawn coarser and enlarged, which
its smoothness hides: it is blurred by a quarter of its side. That costs as much as the third power of the side.
"""
ELONGATED = 3.0
"""A mask with at least this area in units of its squared width is long: scaling does not change its width."""


def perturb(mask: Mask, *, seed: int, config: MaskConfig) -> Mask:
    """Perturb a mask; a pure function of its arguments.

    Args:
        mask: bool [H,W], not empty.
        seed: seed of everything drawn.
        config: bounds of the changes.

    Returns:
        bool [h,w], cropped to its box, never empty, with at most as many pieces as before.
    """
    x0, y0, x1, y1 = box_xyxy(mask)
    crop = mask[y0:y1, x0:x1]
    area = int(crop.sum())
    fine = finer(crop)
    width = mean_width_px(fine)
    is_long = fine.sum() >= ELONGATED * width**2
    pieces = cv2.connectedComponents(crop.astype(np.uint8), connectivity=8)[0] - 1
    for attempt in range(MAX_TRIES):
        rng = np.random.default_rng([5, seed, attempt])
        moved = _elastic(_affine(fine, rng, config), rng, config)
        wanted = (width if is_long else mean_width_px(moved)) * np.exp(
            rng.uniform(-config.thickness_share, config.thickness_share)
        )
        changed = largest_pieces(coarser(of_width(moved, wanted)), pieces)
        if AREA_BOUNDS[0] * area <= changed.sum() <= AREA_BOUNDS[1] * area:
            return cropped(changed)
    return crop.copy()


def _affine(mask: Mask, rng: np.random.Generator, config: MaskConfig) -> Mask:
    height, width = mask.shape
    theta = np.deg2rad(rng.uniform(-config.rotate_degrees, config.rotate_degrees))
    low, high = np.log(config.scale_range)
    sx, sy = np.exp(rng.uniform(low, high, 2))
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    matrix = turn @ np.array([[sx, rng.uniform(-config.shear, config.shear)], [0.0, sy]])
    if config.flip and rng.random() < 0.5:
        matrix = matrix @ np.diag([-1.0, 1.0])
    corners = np.array([[-width, -height], [width, -height], [-width, height], [width, height]]) / 2 @ matrix.T
    size = np.ceil(np.abs(corners).max(axis=0) * 2).astype(int) + 4 * SUPERSAMPLE
    offset = (size - 1) / 2 - matrix @ np.array([(width - 1) / 2, (height - 1) / 2])
    warp = np.concatenate([matrix, offset[:, None]], axis=1)
    cover = cv2.warpAffine(mask.astype(np.float32), warp, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR)
    return cover >= 0.5


def _elastic(mask: Mask, rng: np.random.Generator, config: MaskConfig) -> Mask:
    if config.elastic_px <= 0:
        return mask
    padded = np.pad(mask, 6 * SUPERSAMPLE)
    height, width = padded.shape
    sigma = max(6.0 * SUPERSAMPLE, 0.25 * max(height, width))
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    shift: list[NDArray[np.float32]] = []
    for _ in range(2):
        field = _smooth_field(rng, (height, width), sigma)
        shift.append(
            (
                field
                / max(float(np.sqrt((field**2).mean())), 1e-9)
                * min(config.elastic_px * SUPERSAMPLE, 0.15 * max(mask.shape))
            ).astype(np.float32)
        )
    return cv2.remap(padded.astype(np.float32), xs + shift[0], ys + shift[1], cv2.INTER_LINEAR) >= 0.5


def _smooth_field(rng: np.random.Generator, size_hw: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    """Draw a random field float32 [H,W], as smooth as white noise blurred by `sigma` pixels."""
    coarseness = max(1.0, max(size_hw) / MAX_FIELD_PX)
    drawn_hw = [max(1, round(side / coarseness)) for side in size_hw]
    field = cv2.GaussianBlur(rng.standard_normal(drawn_hw).astype(np.float32), (0, 0), sigma / coarseness)
    if coarseness > 1:
        field = cv2.resize(field, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    return field.astype(np.float32)


def size_of(mask: Mask, by: SeverityBy) -> float:
    """Return the size that masks are ordered by: area, mean width or longer side of the box, pixels."""
    if by == "width":
        return mean_width_px(finer(mask)) / SUPERSAMPLE
    return float(mask.sum()) if by == "area" else float(max(cropped(mask).shape))


def mean_width_px(mask: Mask) -> float:
    """Return the mean width of a mask in pixels: four times the mean distance to its outline.

    For a strip, this equals its width.
    """
    if not mask.any():
        return 0.0
    padded = np.pad(mask, 1)
    return 4 * float(_to_outline(padded)[padded].mean())


def _to_outline(mask: Mask) -> NDArray[np.float32]:
    """Return the distance of a mask's pixel centres to its outline; the array's border is not an outline.

    The outline lies half a pixel from the nearest pixel outside the mask.
    """
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.maximum(distance.astype(np.float32) - 0.5, 0)


def of_width(mask: Mask, wanted: float) -> Mask:
    """Move a mask's outline until its mean width in pixels is as wanted; shrinking never splits a defect."""
    shift = (wanted - mean_width_px(mask)) / 2
    if abs(shift) < 0.05:
        return mask
    padded = np.pad(mask, int(np.ceil(max(shift, 0))) + 1)
    inside, outside = _to_outline(padded), _to_outline(~padded)
    shift = max(shift, -0.6 * float(np.median(inside[inside > 0.6 * inside.max()])))
    return inside - outside + shift > 0


def finer(mask: Mask) -> Mask:
    """Upsample a mask to the finer grid and smooth its stair steps."""
    padded = np.pad(mask, 2).astype(np.float32)
    size = (padded.shape[1] * SUPERSAMPLE, padded.shape[0] * SUPERSAMPLE)
    return cv2.resize(padded, size, interpolation=cv2.INTER_CUBIC) >= 0.5


def coarser(mask: Mask) -> Mask:
    """Downsample a mask to the pixel grid; pixels that are at least half covered count."""
    height, width = (-(-side // SUPERSAMPLE) * SUPERSAMPLE for side in mask.shape)
    padded = np.pad(mask, ((0, height - mask.shape[0]), (0, width - mask.shape[1]))).astype(np.float32)
    return cv2.resize(padded, (width // SUPERSAMPLE, height // SUPERSAMPLE), interpolation=cv2.INTER_AREA) >= 0.5


def largest_pieces(mask: Mask, pieces: int) -> Mask:
    """Return a mask with only its `pieces` largest connected pieces; it has at least one."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count - 1 <= max(1, pieces):
        return mask
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA])[: max(1, pieces)] + 1
    return np.isin(labels, order)


def cropped(mask: Mask) -> Mask:
    """Return a mask cropped to its bounding box."""
    x0, y0, x1, y1 = box_xyxy(mask)
    return mask[y0:y1, x0:x1].copy()
