"""Loads the tiles that both phases train on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.tiles import Tile, spread
from defectory.runs.store import RunStore
from defectory.stages.parts.drawings import Drawings
from defectory.stages.parts.images_used import record_images

if TYPE_CHECKING:
    from defectory.engine.training.data import TrainingTile

MAX_HELD_OUT = 32
"""Most val tiles in the held-out loss."""


def phase_tiles(inputs: RunStore, drawings: Drawings | None) -> tuple[list[TrainingTile], list[TrainingTile]]:
    """Load the tiles that both phases train on, and those of their held-out loss.

    Returns:
        Defective train tiles and up to half as many defect-free ones; defective val tiles.

    Raises:
        FirewallError: a tile comes from an image that is not in train or pool.
    """
    training, held_out = _chosen(inputs)
    return _loaded(inputs, training, drawings), _loaded(inputs, held_out, drawings)


def record_phase_images(inputs: RunStore, out: Path, **others: Iterable[int]) -> None:
    """Record the images that a phase trained on, and those of its held-out loss.

    Args:
        inputs: of the stage.
        out: folder of the phase.
        others: ids of images that served further purposes.
    """
    training, held_out = _chosen(inputs)
    ids = {"training": (tile.image_id for tile in training), "held_out": (tile.image_id for tile in held_out)}
    record_images(out, **ids, **others)


def _chosen(inputs: RunStore) -> tuple[list[Tile], list[Tile]]:
    tileset = inputs.tiles.tileset
    defective = [tile for tile in tileset.of("train") if tile.instances]
    free = [*tileset.of("pool"), *(tile for tile in tileset.of("train") if not tile.instances)]
    inputs.split.require_training_ids((tile.image_id for tile in [*defective, *free]), stage="training")
    free = spread(free, max(1, len(defective) // 2))
    held_out = [tile for tile in tileset.of("val") if tile.instances][:MAX_HELD_OUT]
    return [*defective, *free], held_out


def _loaded(inputs: RunStore, tiles: Iterable[Tile], drawings: Drawings | None) -> list[TrainingTile]:
    from defectory.engine.training.data import TrainingTile

    names = {c.id: c.name for c in inputs.tiles.tileset.categories}
    return [
        TrainingTile(
            id=tile.id,
            image=inputs.tiles.image(tile),
            instances=masks_of(tile.instances),
            class_names=tuple(names[i.category_id] for i in tile.instances),
            valid_hw=tile.valid_hw,
            drawing=None if drawings is None else drawings.of(tile),
        )
        for tile in tiles
    ]
