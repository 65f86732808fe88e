"""Tiles with one bright rectangle each, in the colour of its class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from defectory.rle import encode
from defectory.segmentation.data import SegmentationImage

SIZE_HW = (48, 64)
COLOURS = {1: (250, 120, 120), 2: (120, 120, 250)}


@pytest.fixture
def make_tiles() -> Callable[..., list[SegmentationImage]]:
    """Tiles of 48x64 pixels (height x width), the first of two classes, then the other; `with_defect=False` leaves them
    empty.
    """

    def make(prefix: str, count: int, *, seed: int = 0, with_defect: bool = True) -> list[SegmentationImage]:
        tiles: list[SegmentationImage] = []
        for index in range(count):
            rng = np.random.default_rng([seed, index])
            image = rng.integers(40, 70, (*SIZE_HW, 3)).astype(np.uint8)
            mask = np.zeros(SIZE_HW, bool)
            top, left = rng.integers(4, 20, 2)
            mask[top : top + 14, left : left + 20] = True
            category_id = 1 + index % 2
            if with_defect:
                image[mask] = COLOURS[category_id]
            tiles.append(
                SegmentationImage(
                    id=f"{prefix}{index}", image=image, instances=((category_id, encode(mask)),) if with_defect else ()
                )
            )
        return tiles

    return make
