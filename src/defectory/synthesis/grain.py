"""Adds grain: the fine texture and camera noise of real tiles, which autoencoder and sampler draw too weakly.

Without grain, a segmenter trained on drafts alone would learn surfaces that are too smooth. The fine detail that a
draft lacks compared with its pool tile is added as noise of the same spectrum. Nothing is copied, and a draft that
already has the detail stays unchanged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.signal import fftconvolve

Image = NDArray[np.uint8]
Grey = NDArray[np.float32]

WINDOW_PX = 16
"""Side of the windows in which spectra are measured; they overlap by half."""
COARSEST_PX = 8.0
"""Wavelength above which detail counts as structure, which drivers and prompts control, not as grain."""
MEDIAN_OF_POWER = float(np.log(2.0))
"""Median over mean of an exponential distribution, which the power of noise at a frequency follows."""


def add_grain(images: list[Image], *, tile: Image, valid_hw: tuple[int, int], seed: int) -> list[Image]:
    """Add the grain of a tile to pictures that lack it. All get the same grain, so that it cancels in differences.

    Args:
        images: RGB uint8 [H,W,3] of one draft; the last one, without masks, decides how much grain is missing.
        tile: RGB uint8 [H,W,3] the draft's driver was taken from.
        valid_hw: image part of the tile, in px; the rest is padding and stays as it is.
        seed: of the grain.

    Returns:
        RGB uint8 [H,W,3] each, unchanged if tiles are too small for a window.
    """
    height, width = valid_hw
    if min(height, width) < 2 * WINDOW_PX:
        return images
    wanted, drawn = (_grey(image)[:height, :width] for image in (tile, images[-1]))
    spectra = _spectra(wanted)
    lacking = np.maximum(_typical(spectra) - _typical(_spectra(drawn)), 0.0) * _fine_share()
    if not lacking.any():
        return images
    noise = np.random.default_rng([47, seed]).standard_normal(valid_hw)
    # a zero-phase filter with the missing power as its response
    kernel = np.fft.fftshift(np.fft.ifft2(np.sqrt(lacking / (_taper() ** 2).sum())).real)
    grain = fftconvolve(noise, kernel, mode="same").astype(np.float32)
    constant, slope = _noise_of_brightness(wanted, spectra)
    typical = constant + slope * float(np.median(wanted))
    result: list[Image] = []
    for image in images:
        strength = np.ones(valid_hw, np.float32)
        if typical > 0:
            strength = np.sqrt((constant + slope * _grey(image)[:height, :width]) / typical)
        finished = image.copy()
        finished[:height, :width] = np.clip(np.round(image[:height, :width] + (grain * strength)[..., None]), 0, 255)
        result.append(finished)
    return result


def _grey(image: Image) -> Grey:
    return image.astype(np.float32).mean(axis=2)


def _taper() -> NDArray[np.float64]:
    one = np.hanning(WINDOW_PX + 2)[1:-1]
    return np.outer(one, one)


def _windows(grey: Grey) -> NDArray[Any]:
    step = WINDOW_PX // 2
    views = np.lib.stride_tricks.sliding_window_view(grey, (WINDOW_PX, WINDOW_PX))[::step, ::step]
    return views.reshape(-1, WINDOW_PX, WINDOW_PX)


def _spectra(grey: Grey) -> NDArray[np.float64]:
    """Compute the power at each frequency of each window, float64 [N,w,w]."""
    windows = _windows(grey).astype(np.float64)
    windows = windows - windows.mean(axis=(1, 2), keepdims=True)
    return np.abs(np.fft.fft2(windows * _taper())) ** 2


def _typical(spectra: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the power at each frequency in a typical window, so that the few windows with an edge do not count."""
    return np.median(spectra, axis=0) / MEDIAN_OF_POWER


def _fine_share() -> NDArray[np.float64]:
    """Compute how far each frequency counts as grain, 0..1: 0 at `COARSEST_PX`, 1 at half of it."""
    frequency = np.fft.fftfreq(WINDOW_PX)
    radius = np.hypot(frequency[:, None], frequency[None])
    return np.clip(radius * COARSEST_PX - 1.0, 0.0, 1.0)


def _noise_of_brightness(grey: Grey, spectra: NDArray[np.float64]) -> tuple[float, float]:
    """Fit grain variance a + b g at grey level g; return a and b, both at least 0.

    This is the model of signal-dependent camera noise of Foi et al. 2008.
    """
    energy = np.median(spectra[:, _fine_share() > 0.5], axis=1)
    levels = _windows(grey).mean(axis=(1, 2)).astype(np.float64)
    # an edge multiplies a window's energy, and must not outweigh the others
    kept = energy <= np.quantile(energy, 0.9)
    solution, _ = nnls(np.stack([np.ones(int(kept.sum())), levels[kept]], axis=1), energy[kept])
    return float(solution[0]), float(solution[1])
