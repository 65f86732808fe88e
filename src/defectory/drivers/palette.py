"""Bright, distinct class colours."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray


def palette(num_classes: int) -> NDArray[np.uint8]:
    """Return one bright colour per class, uint8 [n,3], in row `category_id - 1`.

    Hues are evenly spaced at full brightness; from eight classes on, every second colour is paler.
    """
    rows: list[tuple[float, float, float]] = []
    for index in range(num_classes):
        saturation = 1.0 if num_classes < 8 or index % 2 == 0 else 0.55
        rows.append(colorsys.hsv_to_rgb(index / max(1, num_classes), saturation, 1.0))
    return np.round(np.array(rows).reshape(-1, 3) * 255).astype(np.uint8)


def colour_of(category_id: int, num_classes: int) -> tuple[int, int, int]:
    """Return the colour of one class as plain integers 0..255."""
    red, green, blue = palette(num_classes)[category_id - 1]
    return int(red), int(green), int(blue)
