"""Driver leakage of a project, and constants of its drivers chosen from its own tiles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.tiles import Tile
from defectory.drawing import contact_sheet
from defectory.drivers.extract import extract_driver
from defectory.drivers.kinds import GEOMETRIES
from defectory.drivers.leakage import FOLDS, Leakage, leakage
from defectory.drivers.tune import Candidate, Sample, candidates_of, tune
from defectory.errors import InputError
from defectory.imageio import load_rgb
from defectory.pipeline.drawings import drawings_of
from defectory.pipeline.stage import Progress, Project
from defectory.pipeline.values import masks_of, split_of, spread, tileset_of

MAX_TILES = 150


def driver_samples(project: Project) -> tuple[list[Sample], list[Sample]]:
    """Give annotated train tiles with their masks, and pool tiles, each with the masks of a train tile laid on it."""
    tileset, drawings = tileset_of(project), drawings_of(project)
    defective = spread([tile for tile in tileset.of("train") if tile.instances], MAX_TILES)
    free = spread(tileset.of("pool"), MAX_TILES)
    split_of(project).require_training_ids((tile.image_id for tile in [*defective, *free]), stage="drivers")

    def sample(tile: Tile, labels: Tile) -> Sample:
        image = load_rgb(project.path("tiles", tile.file_name))
        masks = tuple(mask for _, mask in masks_of(labels.instances))
        return Sample(
            image=image, masks=masks, valid_hw=tile.valid_hw, drawing=None if drawings is None else drawings.of(tile)
        )

    return (
        [sample(tile, tile) for tile in defective],
        [sample(tile, defective[index % len(defective)]) for index, tile in enumerate(free) if defective],
    )


def leakage_of(project: Project) -> Leakage | None:
    """Measure whether the project's drivers tell defective from defect-free tiles; None where there are too few
    tiles.
    """
    config = project.config.drivers

    def pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return sample.geometry(config), np.any(sample.masks, axis=0)

    defective, free = driver_samples(project)
    return leakage([pair(s) for s in defective], [pair(s) for s in free], seed=project.config.seed)


def compare_drivers(project: Project, *, num_tiles: int) -> NDArray[np.uint8]:
    """Give a sheet of train tiles, each beside its drivers of every kind, RGB uint8 [H,W,3]; geometry at full
    brightness.
    """
    tileset, config, drawings = tileset_of(project), project.config.drivers, drawings_of(project)
    kinds = [*GEOMETRIES] if config.kind in GEOMETRIES else [config.kind, *GEOMETRIES]
    cells: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for tile in spread([tile for tile in tileset.of("train") if tile.instances], num_tiles):
        image, instances = load_rgb(project.path("tiles", tile.file_name)), masks_of(tile.instances)
        cells.append(image)
        labels.append(tile.id)
        if drawings is not None:
            image = drawings.of(tile)
            cells.append(image)
            labels.append("drawing")
        for kind in kinds:
            driver = extract_driver(
                image,
                instances,
                num_classes=len(tileset.categories),
                config=config.model_copy(update={"kind": kind, "background_level": 255}),
                valid_hw=tile.valid_hw,
            )
            cells.append(driver)
            labels.append(kind)
    return contact_sheet(cells, columns=len(kinds) + (1 if drawings is None else 2), labels=labels, cell_px=160)


def tune_drivers(project: Project) -> Iterator[Progress | list[Candidate]]:
    """Measure every choice of the driver's constants on the project's train and pool tiles; yields the candidates last,
    the best first.

    Raises:
        InputError: there are too few tiles to measure leakage.
    """
    defective, free = driver_samples(project)
    if min(len(defective), len(free)) < 2 * FOLDS:
        raise InputError(
            project.path("tiles"),
            f"{len(defective)} defective train tiles and {len(free)} pool tiles",
            f"at least {2 * FOLDS} of each are needed to measure leakage",
        )
    total = len(candidates_of(project.config.drivers, tile_px=max(defective[0].image.shape[:2])))
    for event in tune(defective, free, config=project.config.drivers, seed=project.config.seed):
        if isinstance(event, int):
            yield Progress(stage="tune", done=event, total=total)
        else:
            yield event
