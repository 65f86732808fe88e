from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from defectory.drivers.leakage import bootstrap_aucs, features, leakage

SIZE_HW = (40, 56)


def tiles(count: int, *, seed: int, leak: float) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Random dim geometry, and a mask each; `leak` of the tiles are dark around it."""
    made: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        geometry = np.where(rng.random((10, 14)) < 0.3, 0, 50).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        mask = np.zeros(SIZE_HW, bool)
        y, x = rng.integers(8, 20, 2)
        mask[y : y + 10, x : x + 14] = True
        if rng.random() < leak:
            geometry[y - 4 : y + 14, x - 4 : x + 18] = 0
        made.append((geometry, mask))
    return made


def test_geometry_that_knows_of_the_defect_is_told_apart() -> None:
    found = leakage(tiles(40, seed=0, leak=0.9), tiles(40, seed=1, leak=0.0), seed=0)
    assert found is not None
    assert found.auc > 0.85
    assert 0.5 < found.interval[0] < found.auc < found.interval[1]
    assert (found.num_defective, found.num_defect_free) == (40, 40)


def test_geometry_that_does_not_know_is_near_a_half() -> None:
    found = leakage(tiles(60, seed=0, leak=0.0), tiles(60, seed=1, leak=0.0), seed=0)
    assert found is not None
    assert found.interval[0] < 0.5 + 0.1
    assert abs(found.auc - 0.5) < 0.15


def test_it_is_seeded_and_needs_ten_tiles_of_either_kind() -> None:
    defective, free = tiles(12, seed=0, leak=0.5), tiles(12, seed=1, leak=0.0)
    assert leakage(defective, free, seed=3) == leakage(defective, free, seed=3)
    assert leakage(defective[:9], free, seed=3) is None


def of_parts(seed: int, num_parts: int) -> tuple[list[Any], list[Any], list[str]]:
    """Parts with darkness of their own around every mask, every second one defective, and the group of each tile."""
    rng = np.random.default_rng(seed)
    kinds: tuple[list[Any], list[Any]] = ([], [])
    groups: tuple[list[str], list[str]] = ([], [])
    for part in range(num_parts):
        dark = rng.random(SIZE_HW) < rng.random()
        for _ in range(6):
            ((geometry, mask),) = tiles(1, seed=int(rng.integers(1000)), leak=0.0)
            y, x = (int(axis.min()) for axis in np.nonzero(mask))
            near = np.zeros(SIZE_HW, bool)
            near[max(0, y - 6) : y + 16, max(0, x - 6) : x + 20] = True
            geometry[near & dark] = 0
            kinds[part % 2].append((geometry, mask))
            groups[part % 2].append(f"part {part}")
    return *kinds, groups[0] + groups[1]


def test_a_part_known_again_is_no_leak() -> None:
    by_tile: list[float] = []
    by_part: list[float] = []
    for seed in range(8):
        defective, free, groups = of_parts(seed, 12)
        for found, given in ((by_tile, None), (by_part, groups)):
            leak = leakage(defective, free, groups=given, seed=0, num_bootstrap=2)
            assert leak is not None
            found.append(leak.auc)
    assert np.mean(by_tile) > 0.55 > np.mean(by_part)
    assert np.mean(by_tile) > np.mean(by_part) + 0.08
    few, free, groups = of_parts(0, 8)
    assert leakage(few, free, groups=groups, seed=0) is None, "four parts of either kind"


def test_resamples_have_the_area_that_scikit_learn_computes_ties_included() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 40).astype(float), rng.integers(0, 2, 40)
    draws = np.random.default_rng([81, 3])
    chosen = [draws.integers(40, size=40) for _ in range(5)]
    expected = [roc_auc_score(labels[places], scores[places]) for places in chosen]
    assert bootstrap_aucs(scores, labels, seed=3, count=5) == pytest.approx(expected)


def test_features_see_rings_and_not_what_is_under_the_mask() -> None:
    ((geometry, mask),) = tiles(1, seed=4, leak=0.0)
    under = geometry.copy()
    under[mask] = 0
    assert features(under, mask) == pytest.approx(features(geometry, mask))
    ringed = geometry.copy()
    ringed[~mask] = 50
    assert features(ringed, mask) == pytest.approx([0.0] * 4)
