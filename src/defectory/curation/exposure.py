"""Brightness, sharpness and clipping of drafts, compared with real tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
LEVEL_STEP = 4.0
"""Minimum width of a range of means or contrasts, in grey levels; a single tone has no range of its own."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Mean and standard deviation of grey levels, mean step between neighbours, share of black and white pixels."""

    mean: float
    contrast: float
    step: float
    clipped: float


def figures_of(image: Image, valid_hw: tuple[int, int]) -> Figures:
    """Measure the image part of a tile RGB uint8 [H,W,3]."""
    shown = image[: valid_hw[0], : valid_hw[1]].astype(np.float32)
    grey = shown.mean(axis=2)
    step = 0.5 * (np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())
    clipped = ((grey <= 1) | (grey >= 254)).mean()
    return Figures(mean=float(grey.mean()), contrast=float(grey.std()), step=float(step), clipped=float(clipped))


@dataclass(frozen=True, kw_only=True)
class RealFigures:
    """The ranges of these figures over the real tiles."""

    mean: tuple[float, float]
    contrast: tuple[float, float]
    least_step: float
    most_clipped: float

    def exposure(self, figures: Figures) -> float:
        """Return how far mean or contrast lies outside the range of real tiles, as a share of it; 0 inside."""
        return max(_outside(figures.mean, self.mean), _outside(figures.contrast, self.contrast))

    def blur(self, figures: Figures) -> float:
        """Return how many times softer a tile is than the softest real ones; below 1 if it is sharper."""
        return self.least_step / max(figures.step, 1e-3)


def learn_figures(figures: Sequence[Figures]) -> RealFigures:
    """Learn the ranges from the figures of real tiles, at least one."""
    means, contrasts = [f.mean for f in figures], [f.contrast for f in figures]
    return RealFigures(
        mean=(min(means), max(means)),
        contrast=(min(contrasts), max(contrasts)),
        least_step=float(np.quantile([f.step for f in figures], 0.02)),
        most_clipped=max(f.clipped for f in figures),
    )


def _outside(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return max(low - value, value - high, 0.0) / (high - low + LEVEL_STEP)
