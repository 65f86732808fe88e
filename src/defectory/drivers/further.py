"""Makes the drivers of several networks: of a run's own, and of further ones that act beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import Mask, extract_driver, geometry_map

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FurtherDriver:
    """What a further network reads.

    Attributes:
        kind: as `drivers.kind`; None for the driver of the run's own network.
        masks: whether it was trained by Defectory, on drivers of the kind with masks painted. Other networks read plain
            geometry: of full size and brightness, without masks.
    """

    kind: str | None
    masks: bool


def driver_pair(
    image: Image,
    instances: Sequence[tuple[int, Mask]],
    *,
    num_classes: int,
    config: DriverConfig,
    valid_hw: tuple[int, int],
    further: Sequence[FurtherDriver] = (),
) -> tuple[Image, Image]:
    """Extract a draft's drivers with its masks and without, uint8 [H,W,3K] for the run's own network and K-1 others.

    Both are filled under the masks, like drivers of annotated images. Otherwise the geometry beside a mask would give
    the defect away.

    Args:
        image: that geometry comes from, RGB uint8 [H,W,3].
        instances: category id and mask bool [H,W] of each defect to paint.
        num_classes: of the data set.
        config: of the run's drivers.
        valid_hw: size of the image part; the rest is padding.
        further: what further networks read.
    """
    blind = [mask for _, mask in instances]

    def both(settings: DriverConfig) -> tuple[Image, Image]:
        with_masks, without = (
            extract_driver(image, shown, num_classes=num_classes, config=settings, blind=blind, valid_hw=valid_hw)
            for shown in (instances, ())
        )
        return with_masks, without

    own = both(config)
    pairs = [own]
    for one in further:
        if one.kind is None:
            pairs.append(own)
        elif one.masks:
            pairs.append(both(config.model_copy(update={"kind": one.kind})))
        else:
            plain = plain_geometry(image, kind=one.kind, config=config, blind=blind, valid_hw=valid_hw)
            pairs.append((plain, plain))
    if len(pairs) == 1:
        return own
    driver, empty = (np.concatenate(halves, axis=2) for halves in zip(*pairs, strict=True))
    return driver, empty


def plain_geometry(
    image: Image, *, kind: str, config: DriverConfig, blind: Sequence[Mask], valid_hw: tuple[int, int]
) -> Image:
    """Compute geometry as published networks read it, RGB uint8 [H,W,3]: of the image's size, from 0 to 255.

    Args:
        image: RGB uint8 [H,W,3].
        kind: as `drivers.kind`.
        config: the kind's constants.
        blind: defects bool [H,W] that are filled first, if the configuration says so.
        valid_hw: size of the image part; the rest is padding.
    """
    full = config.model_copy(update={"kind": kind, "grid_px": max(image.shape[:2]), "background_level": 255})
    return geometry_map(image, config=full, blind=blind, valid_hw=valid_hw)
