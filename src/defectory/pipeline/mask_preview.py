"""Masks that the sources of a project draw, for people to look at before anything is synthesized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defectory.drawing import contact_sheet
from defectory.masks.sources import MaskSources
from defectory.pipeline.mask_check import SHEET_COLUMNS, bank_from_train, expert_masks
from defectory.pipeline.mask_model import mask_diffusion_of
from defectory.pipeline.stage import Project
from defectory.pipeline.values import tileset_of

Mask = NDArray[np.bool_]


def preview_masks(
    project: Project, *, per_class: int, seed: int
) -> tuple[NDArray[np.uint8], dict[str, dict[str, int]]]:
    """Draw masks of every class from the configured sources; give a sheet of them, RGB uint8, and how many came from
    which source.
    """
    bank = bank_from_train(project)
    supplied, bank = expert_masks(project, bank)
    tileset = tileset_of(project)
    names = {category.id: category.name for category in tileset.categories}
    config = project.config.masks.model_copy(update={"keep_place": False})
    sources = MaskSources(bank, supplied, config=config, names=names, diffusion=mask_diffusion_of(project, bank))
    cells: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    counts: dict[str, dict[str, int]] = {}
    for category_id, name in names.items():
        rng = np.random.default_rng([87, seed, category_id])
        for _ in range(per_class):
            drawn = sources.draw(category_id, rng)
            if drawn is None:
                break
            mask, source = drawn
            cells.append(_framed(mask, tileset.tiling.tile_px))
            labels.append(f"{name}, {source.kind}")
            of = counts.setdefault(name, {})
            of[source.kind] = of.get(source.kind, 0) + 1
    return contact_sheet(cells, columns=min(SHEET_COLUMNS, per_class), labels=labels, cell_px=128), counts


def _framed(mask: Mask, side: int) -> NDArray[np.uint8]:
    """Lay a mask in the middle of a tile, RGB uint8 [side,side,3]."""
    canvas = np.zeros((side, side, 3), np.uint8)
    mask = mask[:side, :side]
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = 255
    return canvas


def summary_of(counts: dict[str, dict[str, int]]) -> Sequence[tuple[str, str]]:
    """Give class and what its masks came from, for a table."""
    return [(name, ", ".join(f"{count} {kind}" for kind, count in sorted(of.items()))) for name, of in counts.items()]
