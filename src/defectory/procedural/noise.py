"""Band-limited noise fields, drawn from a generator passed in by the caller."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

Field = NDArray[np.floating[Any]]


def value_noise(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    cell_px: float,
    octaves: int = 1,
    anisotropy_xy: tuple[float, float] = (1.0, 1.0),
) -> Field:
    """Draw smooth noise float32 [H,W] in [0,1].

    Args:
        rng: source of randomness.
        size_hw: height and width, pixels.
        cell_px: feature size of the coarsest octave, pixels.
        octaves: number of octaves; each one halves feature size and amplitude.
        anisotropy_xy: stretch of the features along x and y.
    """
    height, width = size_hw
    total = np.zeros(size_hw, np.float32)
    for octave in range(octaves):
        cell = max(1.0, cell_px / 2**octave)
        rows = max(2, int(np.ceil(height / (cell * anisotropy_xy[1]))) + 1)
        columns = max(2, int(np.ceil(width / (cell * anisotropy_xy[0]))) + 1)
        small = rng.random((min(rows, height), min(columns, width)), dtype=np.float32)
        total += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(0.5**octave)
    low, high = float(total.min()), float(total.max())
    return (total - np.float32(low)) / np.float32(max(high - low, 1e-6))


def grain(rng: np.random.Generator, size_hw: tuple[int, int], sigma_px: float) -> Field:
    """Draw blurred white noise float32 [H,W] of zero mean and unit standard deviation.

    Args:
        rng: source of randomness.
        size_hw: height and width, pixels.
        sigma_px: blur radius, pixels; 0 for white noise.
    """
    field = rng.standard_normal(size_hw, dtype=np.float32)
    if sigma_px > 0:
        field = cv2.GaussianBlur(field, (0, 0), sigma_px).astype(np.float32)
    return _standardised(field)


def _standardised(field: Field) -> Field:
    """Return a field with zero mean and unit standard deviation; the input is overwritten."""
    field -= field.mean()
    field *= np.float32(1 / max(float(np.sqrt(np.vdot(field, field) / field.size)), 1e-6))
    return field


def _blurred_along(field: Field, sigma_px: float) -> Field:
    """Blur float32 [H,W] along x, mirrored at its ends, by scaling each cosine by its frequency.

    A kernel as wide as long streaks would be slow.
    """
    frequencies = np.arange(field.shape[1], dtype=np.float32) * np.float32(np.pi / (field.shape[1] - 1))
    shrinking = np.exp(-0.5 * np.square(np.float32(sigma_px) * frequencies))
    return np.asarray(idct(np.asarray(dct(field, type=1, axis=1)) * shrinking, type=1, axis=1), np.float32)


def streaks(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    length_px: float,
    angle_degrees: float,
    thickness_px: float = 0.7,
) -> Field:
    """Draw streaky noise float32 [H,W] of zero mean and unit standard deviation.

    Args:
        rng: source of randomness.
        size_hw: height and width, pixels.
        length_px: length of the streaks.
        angle_degrees: their direction, 0 along x.
        thickness_px: blur across the streaks.
    """
    height, width = size_hw
    side = int(np.ceil(np.hypot(height, width))) + 2
    field = rng.standard_normal((side, side), dtype=np.float32)
    field = cv2.GaussianBlur(field, (1, 0), sigmaX=1, sigmaY=max(thickness_px, 0.3))
    field = _blurred_along(np.asarray(field, np.float32), max(length_px, 0.5))
    if angle_degrees % 180 != 0:
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle_degrees, 1.0)
        field = cv2.warpAffine(field, turn, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    top, left = (side - height) // 2, (side - width) // 2
    field = np.array(field[top : top + height, left : left + width], np.float32)
    return _standardised(field)


@lru_cache(maxsize=8)
def coordinates(size_hw: tuple[int, int]) -> tuple[Field, Field]:
    """Return pixel coordinates (x, y), each float32 [H,W] and read-only."""
    both = np.mgrid[0 : size_hw[0], 0 : size_hw[1]].astype(np.float32)
    both.flags.writeable = False
    ys, xs = both
    return xs, ys
