"""Pastes real defects into defect-free images: the pixels of a defect, adapted to where they go.

After Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (CVPR 2021),
with tones matched and borders blended, since a cut border gives a pasted defect away.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.geometry import distance_to
from defectory.segmentation.data import SegmentationImage

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
BLEND_PX = 3
"""Width of the border in which a pasted defect fades into its new surroundings."""
RING_PX = 6
"""Width of the surroundings whose tones are compared."""
MAX_GAIN = 1.5
"""Most by which a defect's difference from its surroundings is raised or lowered to suit others."""
ZOOM = 1.25
"""Defects are zoomed in or out by up to this factor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cutout:
    """A defect as it may be pasted: its difference from its surroundings, and its mask, with a border around both.

    Attributes:
        category_id: its class.
        difference: float32 [h,w,3], in grey levels.
        mask: bool [h,w].
        spread: standard deviation of the surroundings, in grey levels.
        image_ids: ids of the images that it comes from.
        is_added: the difference is added to each pixel, whose texture shows through; else to the mean of the
            surroundings, so that the defect covers what it is pasted on.
    """

    category_id: int
    difference: NDArray[np.float32]
    mask: Mask
    spread: float
    image_ids: tuple[int, ...]
    is_added: bool = False


def cutouts_of(of: SegmentationImage) -> list[Cutout]:
    """Cut out the defects of an image that lie clear of its border."""
    height, width = of.image.shape[:2]
    covered = np.zeros((height, width), bool)
    for mask, (y, x) in of.crops():
        covered[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    found: list[Cutout] = []
    for (category_id, _), (mask, (y, x)) in zip(of.instances, of.crops(), strict=True):
        top, left, bottom, right = y - RING_PX, x - RING_PX, y + mask.shape[0] + RING_PX, x + mask.shape[1] + RING_PX
        # one that the border cuts would end straight elsewhere
        if min(y, x) < 1 or y + mask.shape[0] >= height or x + mask.shape[1] >= width:
            continue
        top, left, bottom, right = max(0, top), max(0, left), min(height, bottom), min(width, right)
        own = np.zeros((bottom - top, right - left), bool)
        own[y - top : y - top + mask.shape[0], x - left : x - left + mask.shape[1]] = mask
        around = ~covered[top:bottom, left:right] & (distance_to(own) <= RING_PX)
        if around.sum() < 8:
            continue
        pixels = of.image[top:bottom, left:right].astype(np.float32)
        found.append(
            Cutout(
                category_id=category_id,
                difference=pixels - pixels[around].mean(axis=0),
                mask=own,
                spread=float(pixels[around].mean(axis=1).std()),
                image_ids=of.image_ids,
            )
        )
    return found


def varied(cutout: Cutout, rng: np.random.Generator, *, flip: bool) -> Cutout:
    """Return a cutout mirrored and zoomed at random."""
    difference, mask = cutout.difference, cutout.mask
    if flip:
        flip_x, flip_y = rng.random(2) < 0.5
        steps = (slice(None, None, -1 if flip_y else 1), slice(None, None, -1 if flip_x else 1))
        difference, mask = np.ascontiguousarray(difference[steps]), np.ascontiguousarray(mask[steps])
    zoom = float(np.exp(rng.uniform(-np.log(ZOOM), np.log(ZOOM))))
    size_wh = max(1, round(mask.shape[1] * zoom)), max(1, round(mask.shape[0] * zoom))
    larger = cv2.resize(mask.astype(np.float32), size_wh, interpolation=cv2.INTER_LINEAR) >= 0.5
    if not larger.any():
        return cutout
    return Cutout(
        category_id=cutout.category_id,
        difference=cv2.resize(difference, size_wh, interpolation=cv2.INTER_LINEAR).astype(np.float32),
        mask=np.asarray(larger),
        spread=cutout.spread,
        image_ids=cutout.image_ids,
    )


def pasted(image: Image, cutout: Cutout, corner_yx: tuple[int, int], *, keep: Mask) -> tuple[Image, Mask]:
    """Paste a cutout into an image.

    The defect's difference from its old surroundings is added to the tone of the new ones, and follows their contrast.

    Args:
        image: RGB uint8 [H,W,3].
        cutout: what is pasted.
        corner_yx: where the cutout's first pixel goes; may lie outside.
        keep: bool [H,W]; where the image stays as it is, such as holes.

    Returns:
        The image, and the mask of the pasted defect, bool [H,W].
    """
    size_hw = (image.shape[0], image.shape[1])
    (y, x), (height, width) = corner_yx, cutout.mask.shape
    top, left, bottom, right = max(0, y), max(0, x), min(size_hw[0], y + height), min(size_hw[1], x + width)
    label = np.zeros(size_hw, bool)
    if top >= bottom or left >= right:
        return image, label
    inside = (slice(top, bottom), slice(left, right))
    own = (slice(top - y, bottom - y), slice(left - x, right - x))
    label[inside] = cutout.mask[own]
    label &= ~keep
    window = image[inside].astype(np.float32)
    distance = distance_to(cutout.mask)[own]
    around = (distance > 0) & (distance <= RING_PX) & ~keep[inside]
    surroundings = window[around] if around.sum() >= 8 else window.reshape(-1, 3)
    gain = np.clip(float(surroundings.mean(axis=1).std()) / max(cutout.spread, 1e-3), 1 / MAX_GAIN, MAX_GAIN)
    share = np.clip(1 - distance / BLEND_PX, 0, 1) * ~keep[inside]
    ground = window if cutout.is_added else surroundings.mean(axis=0)
    new = ground + cutout.difference[own] * np.float32(np.sqrt(gain))
    mixed = window + share[..., None].astype(np.float32) * (new - window)
    result = image.copy()
    result[inside] = np.clip(np.round(mixed), 0, 255).astype(np.uint8)
    return result, label
