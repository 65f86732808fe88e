"""Measures driver leakage: whether a run's drivers give away which tiles are defective."""

from __future__ import annotations

import numpy as np

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.tiles import Tile, spread
from defectory.config.project import ProjectConfig
from defectory.drivers.leakage import Leakage, leakage
from defectory.drivers.tune import Sample
from defectory.runs.store import RunStore
from defectory.stages.parts.drawings import drawings_of

MAX_TILES = 150


def driver_samples(inputs: RunStore, config: ProjectConfig) -> tuple[list[Sample], list[Sample]]:
    """Return annotated train tiles with their masks, and pool tiles, each with the masks of a train tile laid on it.

    Raises:
        FirewallError: a tile comes from an image that is not in train or pool.
    """
    tiles, drawings, dataset = inputs.tiles, drawings_of(inputs, config.drivers), inputs.data.dataset
    defective = spread([tile for tile in tiles.tileset.of("train") if tile.instances], MAX_TILES)
    free = spread(tiles.tileset.of("pool"), MAX_TILES)
    inputs.split.require_training_ids((tile.image_id for tile in [*defective, *free]), stage="drivers")

    def sample(tile: Tile, labels: Tile) -> Sample:
        masks = tuple(mask for _, mask in masks_of(labels.instances))
        drawing = None if drawings is None else drawings.of(tile)
        group = dataset.image(tile.image_id).group
        return Sample(image=tiles.image(tile), masks=masks, valid_hw=tile.valid_hw, group=group, drawing=drawing)

    return (
        [sample(tile, tile) for tile in defective],
        [sample(tile, defective[index % len(defective)]) for index, tile in enumerate(free) if defective],
    )


def leakage_of(inputs: RunStore, config: ProjectConfig) -> Leakage | None:
    """Measure how well drivers separate defective from defect-free tiles; None if there are too few tiles."""

    def pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return sample.geometry(config.drivers), np.any(sample.masks, axis=0)

    defective, free = driver_samples(inputs, config)
    groups = [sample.group for sample in (*defective, *free)]
    return leakage([pair(s) for s in defective], [pair(s) for s in free], groups=groups, seed=config.seed)
