"""Renders procedural defects: new shapes, filled with new texture that has the contrast and grain of a real defect.

A pasted defect repeats the pixels of a real one. A rendered one shares statistics with it alone: how it differs from
its surroundings at each depth, and how much rougher it is. It is added to an image, whose own texture shows through;
laid over it, large defects would end the streaks of a surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.procedural.noise import grain, value_noise
from defectory.segmentation.copy_paste import RING_PX, Cutout

Mask = NDArray[np.bool_]
NUM_DEPTHS = 4
"""Depths, from the outline to the middle, at which the contrast is measured."""
COARSE_PX = 4.0
"""Blur that divides the texture of a defect into patches and grain."""
PATCH_SHARE = 0.15
"""Blur of the patches of large defects, as a share of the root of their area."""
MAX_GRAIN_PX = 3.0
"""Largest blur of the grain."""
CONTRAST_SPREAD = 0.2
"""Standard deviation of the logarithm of the factor by which a defect is stronger or weaker than its model."""
UNEVENNESS = 0.35
"""Most by which the contrast rises or falls along a defect."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """How a real defect differs from its surroundings.

    Attributes:
        category_id: its class.
        profile: mean difference by depth and channel, float32 [NUM_DEPTHS,3], in grey levels.
        patchiness: standard deviation of coarse texture that the profile does not explain, in grey levels.
        roughness: the same of grain, beyond that of its surroundings.
        grain_px: blur of white noise that is as coarse as the grain.
        spread: standard deviation of its surroundings, in grey levels.
        image_ids: ids of the images that it was measured in.
    """

    category_id: int
    profile: NDArray[np.float32]
    patchiness: float
    roughness: float
    grain_px: float
    spread: float
    image_ids: tuple[int, ...]


def look_of(cutout: Cutout) -> Look:
    """Measure how a defect looks."""
    depths = _depths(cutout.mask)
    inside = cutout.difference[cutout.mask]
    at = depths[cutout.mask]
    overall = inside.mean(axis=0)
    near = [np.abs(at - depth) <= 0.5 / (NUM_DEPTHS - 1) for depth in np.linspace(0, 1, NUM_DEPTHS)]
    profile = np.stack([inside[of].mean(axis=0) if of.any() else overall for of in near]).astype(np.float32)
    rest = (cutout.difference - _painted(profile, depths)).mean(axis=2)
    coarse = _blurred(rest, cutout.mask)
    fine, around = rest - coarse, cutout.difference.mean(axis=2)
    own, theirs = fine[cutout.mask].var(), (around - _blurred(around, ~cutout.mask))[~cutout.mask].var()
    return Look(
        category_id=cutout.category_id,
        profile=profile,
        patchiness=float(coarse[cutout.mask].std()),
        roughness=float(np.sqrt(max(0.0, float(own - theirs)))),
        grain_px=_grain_px(fine, cutout.mask),
        spread=cutout.spread,
        image_ids=cutout.image_ids,
    )


def rendered(look: Look, shape: Mask, rng: np.random.Generator, *, image_ids: tuple[int, ...]) -> Cutout:
    """Render a new defect.

    Args:
        look: what it looks like.
        shape: its mask, bool [h,w], cropped to its box.
        rng: source of randomness.
        image_ids: ids of the images that the shape comes from.

    Returns:
        The defect with a border around it, as it may be pasted.
    """
    mask = np.pad(shape, RING_PX)
    size_hw = (mask.shape[0], mask.shape[1])
    along = value_noise(rng, size_hw, max(4.0, max(size_hw) / 3), octaves=2)
    strength = np.exp(rng.normal(0, CONTRAST_SPREAD)) * (1 + UNEVENNESS * (2 * along - 1))
    patch_px = max(COARSE_PX, PATCH_SHARE * float(np.sqrt(shape.sum())))
    texture = look.roughness * grain(rng, size_hw, look.grain_px) + look.patchiness * grain(rng, size_hw, patch_px)
    difference = _painted(look.profile, _depths(mask)) * strength[..., None] + texture[..., None]
    return Cutout(
        category_id=look.category_id,
        difference=difference.astype(np.float32),
        mask=mask,
        spread=look.spread,
        image_ids=tuple(sorted({*look.image_ids, *image_ids})),
        is_added=True,
    )


def _depths(mask: Mask) -> NDArray[np.float32]:
    """Return the depth in a mask, 0 at and outside the outline and 1 where it is deepest, float32 [H,W]."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    # the first pixel inside has distance 1
    return np.clip((distance - 1) / max(float(distance.max()) - 1, 1.0), 0, 1).astype(np.float32)


def _blurred(values: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Blur float32 [H,W] inside a mask, from the pixels of the mask alone."""
    inside = mask.astype(np.float32)
    weights = cv2.GaussianBlur(inside, (0, 0), COARSE_PX, borderType=cv2.BORDER_CONSTANT)
    blurred = cv2.GaussianBlur(values * inside, (0, 0), COARSE_PX, borderType=cv2.BORDER_CONSTANT)
    return (blurred / np.maximum(weights, 1e-6)).astype(np.float32)


def _painted(profile: NDArray[np.float32], depths: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the profile's difference at each depth, float32 [H,W,3]."""
    knots = np.linspace(0, 1, len(profile))
    return np.stack([np.interp(depths, knots, of) for of in profile.T], axis=-1).astype(np.float32)


def _grain_px(rest: NDArray[np.float32], mask: Mask) -> float:
    """Estimate how coarse a texture is from the correlation of neighbouring pixels of a mask."""
    pairs = [(rest[:, 1:], rest[:, :-1], mask[:, 1:] & mask[:, :-1]), (rest[1:], rest[:-1], mask[1:] & mask[:-1])]
    first = np.concatenate([a[both] for a, _, both in pairs])
    second = np.concatenate([b[both] for _, b, both in pairs])
    variance = float(rest[mask].var())
    if len(first) < 8 or variance < 1e-6:
        return 0.0
    mean = float(rest[mask].mean())
    correlation = float(((first - mean) * (second - mean)).mean()) / variance
    if correlation <= 0.02:
        return 0.0
    # white noise blurred by a Gaussian has the correlation exp(-1 / (4 sigma^2)) at a distance of 1
    return min(MAX_GRAIN_PX, float(np.sqrt(-1 / (4 * np.log(min(correlation, 0.999))))))
