"""Drivers, steps 1 to 6 (paper, section 3.2); step 7, to 0..1, is where they meet the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.drivers.config import DriverConfig
from defectory.drivers.kinds import IMAGE_KIND, KINDS, grey_of, kind_of
from defectory.drivers.palette import palette
from defectory.geometry import distance_to
from defectory.surface import solid_pixels

Mask = NDArray[np.bool_]
BLIND_MARGIN = 1 / 32
"""How far around a defect it is filled, as a share of the longer side: its dark border would give it away (decision
016).
"""


def geometry_map(
    image: NDArray[np.uint8],
    *,
    config: DriverConfig,
    blind: Sequence[Mask] = (),
    valid_hw: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Give the dim coarse geometry of an image, steps 1 to 5.

    Args:
        image: RGB uint8 [H,W,3].
        config: the constants of the steps.
        blind: labelled defects bool [H,W] that are filled from their surroundings first, where the configuration says
            so.
        valid_hw: the part of the image, from its upper left corner, that is not padding.

    Returns:
        uint8 [H,W,3] in 0..`background_level`; of kind `image` the image itself, defects filled.

    Raises:
        ConfigError: there is no such kind, or a plug-in returns no geometry.
    """
    height, width = valid_hw or image.shape[:2]
    window = image[:height, :width]
    result = np.zeros(image.shape, np.uint8)
    if config.kind == IMAGE_KIND:
        seen = np.ascontiguousarray(window)
        result[:height, :width] = _blinded(seen, window, blind, config)
        return result
    ratio = config.grid_px / max(image.shape[:2])
    grid_wh = (max(2, round(width * ratio)), max(2, round(height * ratio)))
    low = np.asarray(cv2.resize(window, grid_wh, interpolation=cv2.INTER_AREA), np.uint8)  # 1. downscale
    if config.kind in KINDS:
        low = grey_of(low)  # 2. grayscale; a plug-in sees colour
    low = _blinded(low, window, blind, config)
    if low.ndim == 2:
        low = np.repeat(low[..., None], 3, axis=2)
    geometry = kind_of(config.kind)(low, config)  # 3. adaptive threshold, or what stands in its place
    graded = bool(((geometry > 0) & (geometry < 255)).any())
    full = cv2.resize(
        geometry, (width, height), interpolation=cv2.INTER_LINEAR if graded else cv2.INTER_NEAREST
    )  # 4. resize back
    dim = np.round(full.astype(np.float32) * config.background_level / 255).astype(np.uint8)  # 5. 0..255 to 0..50
    result[:height, :width] = dim[..., None]
    return result


def extract_driver(
    image: NDArray[np.uint8],
    instances: Sequence[tuple[int, Mask]],
    *,
    num_classes: int,
    config: DriverConfig,
    blind: Sequence[Mask] | None = None,
    valid_hw: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Extract the topological driver of an image with defects painted on it.

    Args:
        image: RGB uint8 [H,W,3].
        instances: category id and mask bool [H,W] of each defect to paint; larger ones are painted first.
        num_classes: classes of the data set, decides the colours.
        config: the constants of the steps.
        blind: real defects in the image; None means the painted ones, which is right for annotated images.
        valid_hw: the part of the image that is not padding.

    Returns:
        RGB uint8 [H,W,3] in 0..255.
    """
    real = [mask for _, mask in instances] if blind is None else list(blind)
    driver = geometry_map(image, config=config, blind=real, valid_hw=valid_hw)
    colours = palette(num_classes)
    for category_id, mask in sorted(instances, key=lambda item: -int(item[1].sum())):
        driver[mask] = colours[category_id - 1]  # 6. paint the mask
    return driver


def _blinded(
    picture: NDArray[np.uint8], window: NDArray[np.uint8], blind: Sequence[Mask], config: DriverConfig
) -> NDArray[np.uint8]:
    """Fill defects in a picture, which is the window or a smaller copy of it."""
    if not config.fills or len(blind) == 0:
        return picture
    defect = np.any([mask[: window.shape[0], : window.shape[1]] for mask in blind], axis=0)
    return _fill(picture, defect, _holes_beside(window, defect))


def _holes_beside(window: NDArray[np.uint8], defect: Mask) -> Mask:
    """Give the holes and surroundings of the part that reach beyond the margin around a defect: they are geometry, not
    its dark border.
    """
    margin = max(1, round(BLIND_MARGIN * max(window.shape[:2])))
    dark = ~solid_pixels(window, (window.shape[0], window.shape[1]), [defect])
    # a dark border that is wider than the margin is still thin beyond it
    beyond = (
        cv2.morphologyEx(
            (dark & (distance_to(defect) > margin)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)
        )
        > 0
    )
    return dark & (distance_to(beyond) <= margin + 2)


def _fill(low: NDArray[np.uint8], defect: Mask, holes: Mask) -> NDArray[np.uint8]:
    """Fill grid cells that hold any defect pixel, and those within the margin, from the surface around them: the
    defect's own tone is gone.

    Holes stay, and lend none of their dark to what is filled.
    """
    size_wh = low.shape[1], low.shape[0]
    cover = cv2.resize(defect.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA) > 0
    margin = max(1, round(BLIND_MARGIN * max(low.shape[:2])))
    filled = _grown(cover, margin)
    kept = cv2.resize(holes.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA) >= 0.5
    unknown = filled | (kept & _grown(filled, 2 * margin))
    if not filled.any() or unknown.all():
        return low
    result = cv2.inpaint(low, unknown.astype(np.uint8), 2 * margin, cv2.INPAINT_TELEA).astype(np.uint8)
    result[kept] = low[kept]
    return result


def _grown(mask: Mask, by: int) -> Mask:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0


def driver_maker(num_classes: int, config: DriverConfig) -> Callable[..., NDArray[np.uint8]]:
    """Return a function that extracts drivers of annotated tiles.

    Args:
        num_classes: decides the colours.
        config: of the drivers.

    Returns:
        A function of image, instances, valid size and, where defects are not the instances, `blind`.
    """

    def make(
        image: NDArray[np.uint8],
        instances: Sequence[tuple[int, Mask]],
        valid_hw: tuple[int, int],
        blind: Sequence[Mask] | None = None,
    ) -> NDArray[np.uint8]:
        return extract_driver(image, instances, num_classes=num_classes, config=config, blind=blind, valid_hw=valid_hw)

    return make
