"""Choose a driver's constants from data.

The best constants keep as much surface structure as possible without revealing which images had a defect.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import geometry_map
from defectory.drivers.kinds import grey_of
from defectory.drivers.leakage import MAX_AUC, Leakage, leakage

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]

SIDE = 64
"""Number of cells along the longer side at which grey levels are predicted."""
REACH = 2
"""Number of cells on every side that a prediction uses."""
CELLS_PER_TILE = 400
RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A tile and the masks to paint on its driver: its own, or for a defect-free tile those of another tile.

    Attributes:
        image: RGB uint8 [H,W,3].
        masks: bool [H,W] each, at least one.
        valid_hw: size of the image part of the tile.
        group: of the tile's image.
        drawing: RGB uint8 [H,W,3] to take geometry from; None uses the image.
    """

    image: Image
    masks: tuple[Mask, ...]
    valid_hw: tuple[int, int]
    group: str
    drawing: Image | None = None

    def geometry(self, config: DriverConfig) -> Image:
        """Return the dim geometry under the masks, uint8 [H,W]."""
        source = self.image if self.drawing is None else self.drawing
        return geometry_map(source, config=config, blind=self.masks, valid_hw=self.valid_hw)[..., 0]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice of constants and its measurements.

    `reconstruction` is the share of grey-level variance that the geometry explains on other tiles, at most 1.
    """

    config: DriverConfig
    reconstruction: float
    leakage: Leakage | None

    @property
    def leaks(self) -> bool:
        """Return whether the geometry reveals defects."""
        return self.leakage is not None and self.leakage.auc > MAX_AUC


def candidates_of(config: DriverConfig, *, tile_px: int) -> list[DriverConfig]:
    """Return the choices to try, the current one first; they cover all constants that this kind of driver uses."""
    grids = [grid for grid in (24, 32, 48, 64, 96, 128) if grid <= tile_px]
    choices: dict[str, Sequence[float]] = {"grid_px": grids}
    if config.kind == "topology":
        choices |= {"threshold_block_px": (7, 13, 21), "threshold_constant": (3.0, 6.0, 10.0)}
    elif config.kind == "edges":
        choices |= {"edge_high": (60.0, 120.0, 200.0)}
    elif config.kind == "soft-edges":
        choices |= {"edge_high": (60.0, 120.0), "soft_sigma_px": (0.7, 1.0, 2.0)}
    elif config.kind == "superpixels":
        choices |= {"superpixel_px": (4.0, 6.0, 10.0)}
    found = [config]
    for values in itertools.product(*choices.values()):
        update: dict[str, float] = dict(zip(choices, values, strict=True))
        if "edge_high" in update:
            update["edge_low"] = update["edge_high"] / 2
        changed = config.model_copy(update=update)
        if changed not in found:
            found.append(changed)
    return found


def tune(
    defective: Sequence[Sample], defect_free: Sequence[Sample], *, config: DriverConfig, seed: int
) -> Iterator[int | list[Candidate]]:
    """Measure every choice of constants; yield the number done, and at the end all choices, the best first.

    Args:
        defective: annotated train tiles with their own masks.
        defect_free: defect-free tiles, each with the masks of a defective tile placed on it.
        config: the kind of driver, and all fixed settings.
        seed: seed of folds, bootstrap and sampled cells.
    """
    tiles = [*defective, *defect_free]
    greys = [grey_cells(sample) for sample in tiles]
    candidates: list[Candidate] = []
    for done, choice in enumerate(candidates_of(config, tile_px=max(tiles[0].image.shape[:2])), start=1):
        maps = [sample.geometry(choice) for sample in tiles]
        pairs = [(geometry, np.any(s.masks, axis=0)) for geometry, s in zip(maps, tiles, strict=True)]
        groups = [sample.group for sample in tiles]
        leak = leakage(pairs[: len(defective)], pairs[len(defective) :], groups=groups, seed=seed)
        candidates.append(
            Candidate(config=choice, reconstruction=reconstruction(maps, greys, tiles, seed=seed), leakage=leak)
        )
        yield done
    yield sorted(candidates, key=merit, reverse=True)


def merit(candidate: Candidate) -> tuple[bool, float]:
    """Return the sort key of a candidate: without leakage first; among leaking ones, the least leakage first."""
    if candidate.leaks and candidate.leakage is not None:
        return False, -candidate.leakage.auc
    return True, candidate.reconstruction


def reconstruction(maps: Sequence[Image], greys: Sequence[Matrix], tiles: Sequence[Sample], *, seed: int) -> float:
    """Return the share of grey-level variance that a ridge regression on the geometry around a cell explains.

    Each tile's mean is removed first. The regression is fitted on every second tile and evaluated on the others, away
    from the masks.

    Args:
        maps: geometry uint8 [H,W] per tile.
        greys: grey levels float64 [h,w] per tile, at `SIDE` cells.
        tiles: the tiles.
        seed: seed of the sampled cells.
    """
    rng = np.random.default_rng([82, seed])
    parts: list[tuple[Matrix, Matrix]] = []
    for geometry, grey, sample in zip(maps, greys, tiles, strict=True):
        height, width = sample.valid_hw
        cells = (
            cv2.resize(geometry[:height, :width].astype(np.float64), grey.shape[::-1], interpolation=cv2.INTER_AREA)
            / 255
        )
        cover = cv2.resize(
            np.any(sample.masks, axis=0)[:height, :width].astype(np.float32),
            grey.shape[::-1],
            interpolation=cv2.INTER_AREA,
        )
        near = cv2.dilate((cover > 0).astype(np.uint8), np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)) > 0
        ys, xs = np.nonzero(~near)
        if len(ys) == 0:
            ys, xs = np.nonzero(np.ones_like(near))
        chosen = rng.choice(len(ys), size=min(CELLS_PER_TILE, len(ys)), replace=False)
        padded = np.pad(cells, REACH, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * REACH + 1, 2 * REACH + 1))
        rows = windows[ys[chosen], xs[chosen]].reshape(len(chosen), -1)
        # the tile's mean tone comes from the prompt, not from the driver
        parts.append((rows - cells.mean(), grey[ys[chosen], xs[chosen]] - grey.mean()))
    fit_x, fit_y = (np.concatenate([part[i] for part in parts[::2]]) for i in (0, 1))
    x, y = (np.concatenate([part[i] for part in parts[1::2] or parts]) for i in (0, 1))
    gram = fit_x.T @ fit_x
    weights = np.linalg.solve(gram + RIDGE * (np.trace(gram) / len(gram) + 1e-9) * np.eye(len(gram)), fit_x.T @ fit_y)
    total = float((y**2).sum())
    return 1 - float(((y - x @ weights) ** 2).sum()) / total if total > 0 else 0.0


def grey_cells(sample: Sample) -> Matrix:
    """Return the grey levels of a tile's image part, float64 [h,w], at most `SIDE` cells on the longer side."""
    height, width = sample.valid_hw
    ratio = min(1.0, SIDE / max(sample.image.shape[:2]))
    size_wh = (max(4, round(width * ratio)), max(4, round(height * ratio)))
    low = cv2.resize(sample.image[:height, :width], size_wh, interpolation=cv2.INTER_AREA)
    return grey_of(np.asarray(low, np.uint8)).astype(np.float64)
