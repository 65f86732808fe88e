"""Kinds of geometry: what a driver keeps of an image at the low resolution, from thresholded topology to a plug-in's
own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.drivers.config import DriverConfig
from defectory.errors import ConfigError
from defectory.registry import Registry

Image = NDArray[np.uint8]
Geometry = NDArray[np.uint8]
IMAGE_KIND = "image"
"""Not a kind of geometry: the image itself, for inpainting (the paper's comparator)."""
FOREGROUND_SHARE = 0.6
"""Share of a tile's variance that its split into two tones must explain: under it the tile is all part."""
BACKGROUND_SHARE = 0.5
"""Surroundings are at most this bright, as a share of the part."""

Kind = Callable[[Image, DriverConfig], Geometry]
"""RGB uint8 [h,w,3] at the low resolution, defects filled, to geometry uint8 [h,w] in 0..255, dimmed afterwards."""


def topology(image: Image, config: DriverConfig) -> Geometry:
    """Return what is not darker than its surroundings, 0 or 255 (paper, section 3.2, step 3)."""
    grey = grey_of(image)
    block = min(config.threshold_block_px | 1, (min(grey.shape) - 1) | 1)
    return np.asarray(
        cv2.adaptiveThreshold(
            grey, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, max(3, block), config.threshold_constant
        ),
        np.uint8,
    )


def edges(image: Image, config: DriverConfig) -> Geometry:
    """Return edges, 255 on 0 (Canny 1986)."""
    low, high = sorted((config.edge_low, config.edge_high))
    return np.asarray(cv2.Canny(grey_of(image), low, high, L2gradient=True), np.uint8)


def soft_edges(image: Image, config: DriverConfig) -> Geometry:
    """Return how steep the grey levels are, 255 at `edge_high` grey levels per cell."""
    grey = cv2.GaussianBlur(grey_of(image).astype(np.float32), (0, 0), config.soft_sigma_px)
    # Scharr's kernels sum to 16 on either side
    across, down = (cv2.Scharr(grey, cv2.CV_32F, dx, dy) / 16 for dx, dy in ((1, 0), (0, 1)))
    return np.clip(np.round(np.hypot(across, down) * (255 * SOFT_EDGE_GAIN / config.edge_high)), 0, 255).astype(
        np.uint8
    )


SOFT_EDGE_GAIN = 4.0
"""Canny's thresholds are for sums of a kernel of 4 on either side."""


def superpixels(image: Image, config: DriverConfig) -> Geometry:
    """Return each superpixel's mean grey level (Achanta et al. 2012, SLIC), stretched over the tile to 0..255."""
    from skimage.segmentation import slic

    grey = grey_of(image)
    count = max(2, round(grey.size / config.superpixel_px**2))
    labels = slic(grey, n_segments=count, compactness=0.1, sigma=0.5, channel_axis=None, start_label=0)
    sums = np.bincount(labels.ravel(), weights=grey.ravel().astype(np.float64))
    means = (sums / np.maximum(np.bincount(labels.ravel()), 1))[labels]
    low, high = float(means.min()), float(means.max())
    return np.round((means - low) * (255 / max(high - low, 32.0))).clip(0, 255).astype(np.uint8)


def silhouette(image: Image, _config: DriverConfig) -> Geometry:
    """Return the part, 255, before dark surroundings or with dark holes, 0; a tile of one tone is all part (Otsu
    1979).
    """
    grey = cv2.GaussianBlur(grey_of(image), (0, 0), 1.0)
    level, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    bright = grey > level
    if not bright.any() or bright.all():
        return np.full(grey.shape, 255, np.uint8)
    share, light, dark = float(bright.mean()), float(grey[bright].mean()), float(grey[~bright].mean())
    explained = share * (1 - share) * (light - dark) ** 2 / max(float(grey.var()), 1e-6)
    if explained < FOREGROUND_SHARE or dark > BACKGROUND_SHARE * light:
        return np.full(grey.shape, 255, np.uint8)
    for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
        binary = cv2.morphologyEx(binary, operation, np.ones((3, 3), np.uint8))
    return np.asarray(binary, np.uint8)


def grey_levels(image: Image, _config: DriverConfig) -> Geometry:
    """Return the grey levels as they are, which suits a drawing: of a photo, they keep all that the grid shows."""
    return grey_of(image)


GEOMETRIES = ("topology", "edges", "soft-edges", "superpixels", "silhouette", "grey")
"""Ours, which see the small image in grey; a kind from outside sees it in colour."""
KINDS: Registry[Kind] = Registry(
    "driver_kinds",
    setting="drivers.kind",
    builtin={
        "topology": f"{__name__}:topology",
        "edges": f"{__name__}:edges",
        "soft-edges": f"{__name__}:soft_edges",
        "superpixels": f"{__name__}:superpixels",
        "silhouette": f"{__name__}:silhouette",
        "grey": f"{__name__}:grey_levels",
        IMAGE_KIND: f"{__name__}:grey_levels",
    },
)


def grey_of(image: Image) -> Geometry:
    """Return an RGB image uint8 [h,w,3] in grey, uint8 [h,w]."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def kind_of(name: str) -> Kind:
    """Return a kind of geometry by name: ours, one that a package registers, or `package.module:function`.

    Raises:
        ConfigError: there is none of this name, or it cannot be loaded; when it is called, it returns no geometry.
    """
    return _checked(name, KINDS.get(name))


def _checked(name: str, plug_in: Kind) -> Kind:
    def geometry(image: Image, config: DriverConfig) -> Geometry:
        found: Any = plug_in(image, config)
        if not isinstance(found, np.ndarray):
            raise ConfigError(
                f"driver plug-in {name}",
                f"returned {type(found).__name__}",
                f"return a uint8 array of height x width {image.shape[:2]}",
            )
        if found.dtype != np.uint8 or found.shape != image.shape[:2]:
            raise ConfigError(
                f"driver plug-in {name}",
                f"returned {found.dtype} of shape {found.shape}",
                f"return uint8 of height x width {image.shape[:2]}, 0 to 255",
            )
        return found

    return geometry
