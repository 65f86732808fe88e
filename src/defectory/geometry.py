"""Width and size of masks, and augmentation.

One geometric transform serves image, masks and driver together; the photometric changes are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

Strength = Literal["train", "offline"]
Border = Literal["reflect", "replicate"]
DARK_LEVEL = 24
"""Grey level below which a pixel shows a hole or the background, not the part."""
DARK_SHARE = 0.3
RESAMPLING = cv2.INTER_LANCZOS4
"""Interpolation for augmented images.

Linear interpolation removes a quarter of a grainy surface's detail, and networks learn what they see (decision 040).
"""
THIN_PX = 6.0
"""An instance narrower than this, in pixels, is thin."""
_BLOCK_PX = 1024


def width_px(mask: NDArray[np.bool_]) -> float:
    """Return the width in pixels of the thickest part of a mask bool [H,W]; 0 if it is empty."""
    return _widest_px(np.pad(mask, 1))


def _widest_px(padded: NDArray[np.bool_]) -> float:
    # doubled, because the distance transform gives lines of 5 and of 6 pixels the same centre value
    doubled = padded.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    return float(cv2.distanceTransform(doubled, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max())


def is_thinner(mask: NDArray[np.bool_], limit_px: float) -> bool:
    """Return whether a mask bool [H,W] is nowhere as thick as `limit_px`; widths are as for `width_px`.

    Memory does not grow with the mask.
    """
    if min(mask.shape) < limit_px or not mask.any():
        return True
    padded = np.pad(mask, 1)
    # within this margin, a pixel's distance is exact or beyond the limit
    margin = ceil(limit_px) + 2
    step = max(_BLOCK_PX, 2 * margin)
    for top in range(0, padded.shape[0], step):
        for left in range(0, padded.shape[1], step):
            block = padded[max(0, top - margin) : top + step + margin, max(0, left - margin) : left + step + margin]
            if block.any() and _core_width_px(block, (min(top, margin), min(left, margin)), step) >= limit_px:
                return False
    return True


def _core_width_px(block: NDArray[np.bool_], start_yx: tuple[int, int], step: int) -> float:
    doubled = block.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    if doubled.all():
        return float("inf")
    distance = cv2.distanceTransform(doubled, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = 2 * start_yx[0], 2 * start_yx[1]
    return float(distance[y : y + 2 * step, x : x + 2 * step].max())


def distance_to(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance in pixels of each pixel to a mask bool [H,W], float32 [H,W].

    The distance is 0 on the mask, and infinite everywhere if the mask is empty.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float32)


def resize_mask(mask: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask bool [H,W] to `size_hw`; half coverage counts as mask.

    A mask that would vanish keeps every pixel it touches.
    """
    if mask.shape == size_hw:
        return mask
    cover = cv2.resize(
        mask.astype(np.float32),
        (size_hw[1], size_hw[0]),
        interpolation=cv2.INTER_AREA if size_hw[0] < mask.shape[0] else cv2.INTER_LINEAR,
    )
    half = cover >= 0.5
    return half if half.any() else cover > 0


def resize_image(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image uint8 [H,W,3]; use area interpolation when shrinking."""
    if image.shape[:2] == size_hw:
        return image
    shrink = size_hw[0] < image.shape[0]
    return cv2.resize(
        image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    ).astype(np.uint8)


def resize_crop(
    crop: NDArray[np.bool_], corner_yx: tuple[int, int], size_hw: tuple[int, int], new_size_hw: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Resize a mask given as a crop, with the same result as `resize_mask` on the whole mask, and crop it again.

    Args:
        crop: bool [h,w]; contains the whole mask.
        corner_yx: position of the crop's first pixel in the image.
        size_hw: size of the image, pixels.
        new_size_hw: size of the resized image, pixels.

    Returns:
        The resized mask's crop and the position (y, x) of its first pixel.
    """
    if size_hw == new_size_hw or not crop.size:
        return crop, corner_yx if crop.size else (0, 0)
    (top, bottom), (new_top, new_bottom) = _whole_periods(corner_yx[0], crop.shape[0], size_hw[0], new_size_hw[0])
    (left, right), (new_left, new_right) = _whole_periods(corner_yx[1], crop.shape[1], size_hw[1], new_size_hw[1])
    window = np.zeros((bottom - top, right - left), bool)
    y, x = corner_yx[0] - top, corner_yx[1] - left
    window[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    resized = resize_mask(window, (new_bottom - new_top, new_right - new_left))
    rows, columns = np.flatnonzero(resized.any(axis=1)), np.flatnonzero(resized.any(axis=0))
    if not len(rows):
        return resized[:0, :0], (0, 0)
    tight = resized[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(tight), (new_top + int(rows[0]), new_left + int(columns[0]))


def _whole_periods(start: int, length: int, old: int, new: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a range of an axis around a crop, before and after resizing, that resizes as in the whole axis."""
    count = gcd(old, new)
    period, new_period = old // count, new // count
    # one more neighbour on either side, for interpolation
    first, last = max(0, (start - 2) // period), min(count, -(-(start + length + 2) // period))
    return (first * period, last * period), (first * new_period, last * new_period)


def border_of(image: NDArray[np.uint8], valid_hw: tuple[int, int]) -> Border:
    """Return how a tile continues beyond its border.

    A surface continues as its mirror image. A part in dark surroundings continues with its border pixels: mirrored, the
    bright round view of a borescope would get a second one beside it.

    Args:
        image: RGB uint8 [H,W,3].
        valid_hw: size of the image part of the tile, pixels.
    """
    grey = image[: valid_hw[0], : valid_hw[1]].mean(axis=2)
    ring = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return "replicate" if (ring < DARK_LEVEL).mean() >= DARK_SHARE else "reflect"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One concrete augmentation: an affine map inside the valid window, then photometric changes.

    `matrix` maps output (x, y, 1) to source (x, y). Only the window `valid_hw` (from the upper left corner) is changed;
    padding outside it stays as it is.
    """

    valid_hw: tuple[int, int]
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    noise_sigma: float = 0.0
    """Standard deviation, grey levels."""
    contrast: float = 1.0
    noise_seed: int = 0
    border: Border = "reflect"

    @classmethod
    def identity(cls, valid_hw: tuple[int, int]) -> Self:
        """Return the augmentation that changes nothing."""
        return cls(valid_hw=valid_hw, matrix=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))

    @classmethod
    def sample(
        cls, seed: int, valid_hw: tuple[int, int], *, strength: Strength, flip: bool = True, border: Border = "reflect"
    ) -> Self:
        """Draw an augmentation, a pure function of its arguments.

        Beyond the window's border, image and mask are mirrored or continue as at the border. Zooming in instead would
        cut off what lies at the border, such as a dark vignette, and shift the tones of the whole set.

        Args:
            seed: seed of everything drawn.
            valid_hw: size of the image part of the tile, pixels.
            strength: `train` is geometric only, so that tones stay as in the data; `offline` is the paper's crop, zoom,
                roto-translation, noise and contrast.
            flip: allow mirroring, and quarter turns if the window is square.
            border: how the image continues beyond the window, as `border_of` returns it.
        """
        rng = np.random.default_rng([7, seed])
        height, width = valid_hw
        degrees = rng.uniform(-6, 6) if strength == "train" else rng.uniform(-12, 12)
        theta = np.deg2rad(degrees)
        # zooming out of a view in dark surroundings darkens the image: zoom less, to keep the set's spread of tones
        low, high = (0.94, 1.06) if strength == "train" or border == "replicate" else (0.85, 1.15)
        shrink = 1.0 / rng.uniform(low, high)
        turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]]) * shrink
        if flip:
            turn = turn @ np.diag(rng.choice([-1.0, 1.0], 2))
            if height == width and rng.random() < 0.5:
                turn = turn @ np.array([[0.0, 1.0], [1.0, 0.0]])
        reach = 0.02 if strength == "train" else 0.05
        shift = rng.uniform(-reach, reach, 2) * np.array([width, height])
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        offset = centre + shift - turn @ centre
        rows = np.concatenate([turn, offset[:, None]], axis=1)
        photometric = strength == "offline"
        return cls(
            valid_hw=valid_hw,
            matrix=(
                (float(rows[0, 0]), float(rows[0, 1]), float(rows[0, 2])),
                (float(rows[1, 0]), float(rows[1, 1]), float(rows[1, 2])),
            ),
            noise_sigma=float(rng.uniform(0, 3)) if photometric else 0.0,
            contrast=float(rng.uniform(0.9, 1.1)) if photometric else 1.0,
            noise_seed=int(rng.integers(2**31)),
            border=border,
        )

    @property
    def geometric(self) -> Self:
        """Return the same augmentation without its photometric changes."""
        return replace(self, noise_sigma=0.0, contrast=1.0)

    def _warp(self, window: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
        height, width = self.valid_hw
        mode = cv2.BORDER_REFLECT_101 if self.border == "reflect" else cv2.BORDER_REPLICATE
        warped = cv2.warpAffine(
            window, np.array(self.matrix), (width, height), flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=mode
        )
        return warped.astype(np.uint8)

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Transform an image uint8 [H,W,3]; size and type stay the same."""
        height, width = self.valid_hw
        window = self._warp(np.ascontiguousarray(image[:height, :width]), RESAMPLING)
        if self.contrast != 1.0 or self.noise_sigma > 0:
            noise = np.random.default_rng([11, self.noise_seed]).standard_normal((height, width, 1)) * self.noise_sigma
            mean = window.mean()
            window = np.clip(np.round((window - mean) * self.contrast + mean + noise), 0, 255).astype(np.uint8)
        result = image.copy()
        result[:height, :width] = window
        return result

    def apply_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Transform a mask bool [H,W] by the same geometry (half coverage counts)."""
        height, width = self.valid_hw
        result = np.zeros_like(mask)
        result[:height, :width] = self._warp(mask[:height, :width].astype(np.uint8) * 255, cv2.INTER_LINEAR) >= 128
        return result
