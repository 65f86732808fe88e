"""Compares drafts of a student with its teacher's: how far apart they are, and how much fine detail they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import laplace

Image = NDArray[np.uint8]


def distance(first: Sequence[Image], second: Sequence[Image]) -> float:
    """Compute the mean of |a - b| over all values of images that belong together, in grey levels 0..255.

    Args:
        first: RGB uint8 [H,W,3].
        second: as many of the same sizes, in the same order.
    """
    pairs = zip(first, second, strict=True)
    return float(np.mean([np.abs(a.astype(np.float32) - b.astype(np.float32)).mean() for a, b in pairs]))


def detail(images: Sequence[Image]) -> float:
    """Compute the mean spread of the Laplacian of grey images, in grey levels.

    A blurred image has less of it, a noisy one more.

    Args:
        images: RGB uint8 [H,W,3].
    """
    return float(np.mean([laplace(image.astype(np.float32).mean(axis=2), mode="nearest").std() for image in images]))
