"""Distance and fine detail of drafts, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from defectory.distillation.compare import detail, distance


def test_distance_is_the_mean_of_absolute_differences_without_wrapping_round() -> None:
    dark, light = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)
    assert distance([dark, light], [light, light]) == pytest.approx(127.5)
    assert distance([dark], [dark]) == 0


def test_detail_of_a_checkered_image_is_the_spread_of_its_laplacian() -> None:
    rows, columns = np.mgrid[:64, :96]
    checkered = np.repeat((100 + 10 * ((rows + columns) % 2))[..., None], 3, axis=2).astype(np.uint8)
    # inside, all four neighbours differ by 10, so that the Laplacian is 40 or -40; at the border one or two count less
    assert detail([checkered]) == pytest.approx(40, rel=0.03)
    assert detail([np.full((8, 10, 3), 77, np.uint8)]) == 0


def test_blur_loses_detail_and_noise_adds_it() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(80, 120, (40, 56, 3)).astype(np.uint8)
    blurred = gaussian_filter(image.astype(float), (0.7, 0.7, 0)).astype(np.uint8)
    noisy = (image + rng.integers(0, 60, image.shape)).astype(np.uint8)
    assert detail([blurred]) < detail([image]) < detail([noisy])
