"""Small random shape changes of a mask: affine, elastic, thickness."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.masks.config import MaskConfig
from defectory.rle import box_xyxy

Mask = NDArray[np.bool_]
AREA_BOUNDS = (0.4, 2.5)
"""A perturbation that changes the area beyond these ratios is drawn again, and after some tries left out."""
MAX_TRIES = 6


def perturb(mask: Mask, *, seed: int, config: MaskConfig) -> Mask:
    """Perturb a mask; a pure function of its arguments.

    Args:
        mask: bool [H,W], not empty.
        seed: of everything drawn.
        config: bounds of the changes.

    Returns:
        bool [h,w], cropped to its box, never empty, in as many pieces as before at most.
    """
    x0, y0, x1, y1 = box_xyxy(mask)
    crop = mask[y0:y1, x0:x1]
    area = int(crop.sum())
    pieces = cv2.connectedComponents(crop.astype(np.uint8), connectivity=8)[0] - 1
    for attempt in range(MAX_TRIES):
        rng = np.random.default_rng([5, seed, attempt])
        changed = _thickness(_elastic(_affine(crop, rng, config), rng, config), rng, config)
        changed = _largest(changed, pieces)
        if AREA_BOUNDS[0] * area <= changed.sum() <= AREA_BOUNDS[1] * area:
            return _cropped(changed)
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
    size = np.ceil(np.abs(corners).max(axis=0) * 2).astype(int) + 8
    offset = (size - 1) / 2 - matrix @ np.array([(width - 1) / 2, (height - 1) / 2])
    warp = np.concatenate([matrix, offset[:, None]], axis=1)
    cover = cv2.warpAffine(mask.astype(np.float32), warp, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR)
    return cover >= 0.5


def _elastic(mask: Mask, rng: np.random.Generator, config: MaskConfig) -> Mask:
    if config.elastic_px <= 0:
        return mask
    padded = np.pad(mask, 6)
    height, width = padded.shape
    sigma = max(6.0, 0.25 * max(height, width))
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    shift: list[NDArray[np.float32]] = []
    for _ in range(2):
        field = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), sigma)
        shift.append(
            (field / max(float(np.sqrt((field**2).mean())), 1e-9) * min(config.elastic_px, 0.15 * max(mask.shape))).astype(np.float32)
        )
    return cv2.remap(padded.astype(np.float32), xs + shift[0], ys + shift[1], cv2.INTER_LINEAR) >= 0.5


def _thickness(mask: Mask, rng: np.random.Generator, config: MaskConfig) -> Mask:
    """Move the outline outwards or inwards by less than a pixel or some, on the signed distance."""
    amount = rng.uniform(-config.thickness_px, config.thickness_px)
    padded = np.pad(mask, int(np.ceil(config.thickness_px)) + 1)
    inside = cv2.distanceTransform(padded.astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~padded).astype(np.uint8), cv2.DIST_L2, 5)
    # never eat into the core of a thin defect
    amount = max(amount, -0.4 * float(inside.max()))
    return (inside - 0.5 * (inside > 0)) - (outside - 0.5 * (outside > 0)) + amount > 0


def _largest(mask: Mask, pieces: int) -> Mask:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count - 1 <= max(1, pieces):
        return mask
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA])[: max(1, pieces)] + 1
    return np.isin(labels, order)


def _cropped(mask: Mask) -> Mask:
    x0, y0, x1, y1 = box_xyxy(mask)
    return mask[y0:y1, x0:x1].copy()
