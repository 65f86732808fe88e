"""The seam test of `bench/seams.py`: it finds what insertion must not leave, and nothing where nothing is left."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.synthesis.insert import feather, with_difference

SIZE_HW, MARGIN_PX = (56, 72), 8


def bench() -> Any:
    """The seam test, which is no module of the package."""
    folder = Path(__file__).parents[2] / "bench"
    spec = importlib.util.spec_from_file_location("bench_seams", folder / "seams.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def surface(rng: np.random.Generator) -> NDArray[np.uint8]:
    grain = rng.standard_normal(SIZE_HW) * rng.uniform(4, 8)
    return np.clip(rng.uniform(90, 150) + grain, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def auc_of(inserts_whole: bool) -> float:
    """Return the AUC for halves without a mask of a network that draws too smoothly."""
    seams = bench()
    places: list[Any] = []
    for number in range(60):
        rng = np.random.default_rng([3, number])
        tile = surface(rng)
        label = np.zeros(SIZE_HW, bool)
        y, x = int(rng.integers(12, 36)), int(rng.integers(12, 50))
        label[y : y + 6, x : x + 9] = True
        drawn = cv2.GaussianBlur(tile, (0, 0), 1.2).astype(np.uint8)
        share = feather(label, MARGIN_PX)
        # a whole drawing in place of the tile, or the difference of two equal halves
        half = with_difference(tile, drawn, tile if inserts_whole else drawn, share)
        image = half if number % 2 else tile
        places.append(seams.Place(image=image, label=label, group=number, is_touched=bool(number % 2)))
    return seams.seam_auc(places, margin_px=MARGIN_PX, with_encoder=False)["auc"]


@pytest.mark.parametrize(("inserts_whole", "low", "high"), [(True, 0.85, 1.0), (False, 0.3, 0.65)])
def test_a_half_without_a_mask_shows_only_where_it_is_drawn_anew(inserts_whole: bool, low: float, high: float) -> None:
    assert low <= auc_of(inserts_whole) <= high
