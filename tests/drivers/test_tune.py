from __future__ import annotations

import cv2
import numpy as np
import pytest

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import geometry_map
from defectory.drivers.leakage import MAX_AUC, Leakage
from defectory.drivers.tune import Candidate, Sample, candidates_of, grey_cells, merit, reconstruction, tune

SIZE_HW = (64, 96)


def stripes(seed: int, *, cracked: bool) -> Sample:
    """A striped surface; a crack, where there is one, is far darker than anything else."""
    rng = np.random.default_rng(seed)
    columns = np.repeat(rng.integers(90, 200, SIZE_HW[1] // 6), 6)
    image = np.clip(columns[None, :, None] + rng.normal(0, 3, (*SIZE_HW, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros(SIZE_HW, np.uint8)
    y, x = int(rng.integers(12, 50)), int(rng.integers(12, 70))
    cv2.line(mask, (x, y), (x + 16, y + 6), 1, 3)
    if cracked:
        image[cv2.dilate(mask, np.ones((7, 7))) > 0] = 10
    return Sample(image=image, masks=(mask > 0,), valid_hw=SIZE_HW, group=str(seed))


def test_geometry_that_is_the_image_reconstructs_it_and_a_blank_one_nothing() -> None:
    tiles = [stripes(seed, cracked=False) for seed in range(12)]
    greys = [grey_cells(tile) for tile in tiles]
    whole = [cv2.cvtColor(tile.image, cv2.COLOR_RGB2GRAY) for tile in tiles]
    assert reconstruction(whole, greys, tiles, seed=0) > 0.95
    assert reconstruction([np.full(SIZE_HW, 50, np.uint8)] * 12, greys, tiles, seed=0) == pytest.approx(0, abs=0.01)
    noise = [np.random.default_rng(i).integers(0, 50, SIZE_HW, dtype=np.uint8) for i in range(12)]
    assert reconstruction(noise, greys, tiles, seed=0) < 0.05


def test_finer_grids_reconstruct_stripes_that_coarse_ones_blur() -> None:
    tiles = [stripes(seed, cracked=False) for seed in range(12)]
    greys = [grey_cells(tile) for tile in tiles]
    found = {
        grid: reconstruction(
            [geometry_map(t.image, config=DriverConfig(grid_px=grid), valid_hw=t.valid_hw)[..., 0] for t in tiles],
            greys,
            tiles,
            seed=0,
        )
        for grid in (8, 48)
    }
    assert found[48] > found[8] + 0.1


def test_what_leaks_comes_after_what_does_not_however_well_it_reconstructs() -> None:
    def candidate(share: float, auc: float | None) -> Candidate:
        leak = None if auc is None else Leakage(auc=auc, interval=(auc, auc), num_defective=20, num_defect_free=20)
        return Candidate(config=DriverConfig(), reconstruction=share, leakage=leak)

    best, worse, leaky, leakiest = (
        candidate(0.5, 0.6),
        candidate(0.2, 0.4),
        candidate(0.9, MAX_AUC + 0.05),
        candidate(0.9, 0.9),
    )
    assert sorted([leakiest, worse, leaky, best], key=merit, reverse=True) == [best, worse, leaky, leakiest]


@pytest.mark.parametrize("kind", ["topology", "edges", "soft-edges", "superpixels", "silhouette"])
def test_the_present_constants_are_among_those_tried_and_grids_fit_the_tile(kind: str) -> None:
    config = DriverConfig(kind=kind, grid_px=40)
    found = candidates_of(config, tile_px=96)
    assert found[0] == config
    assert len(found) == len(set(map(str, found))) > 3
    assert max(c.grid_px for c in found) == 96
    assert all(c.kind == kind for c in found)


@pytest.mark.parametrize("blind", [True, False])
def test_tuning_keeps_most_structure_among_what_does_not_leak_and_says_where_all_leaks(blind: bool) -> None:
    defective = [stripes(seed, cracked=True) for seed in range(16)]
    free = [stripes(100 + seed, cracked=False) for seed in range(16)]
    *counts, found = tune(defective, free, config=DriverConfig(grid_px=48, defect_blind=blind), seed=0)
    assert counts == list(range(1, len(found) + 1))
    assert isinstance(found, list)
    tight = [c for c in found if not c.leaks]
    if blind:
        assert not found[0].leaks
        assert found[0].reconstruction == max(c.reconstruction for c in tight)
    else:
        present = next(c for c in found if c.config == DriverConfig(grid_px=48, defect_blind=False))
        assert present.leaks, "the crack's dark halo shows beside its mask"
        leaky = [c.leakage.auc for c in found if c.leaks and c.leakage is not None]
        assert leaky == sorted(leaky)
