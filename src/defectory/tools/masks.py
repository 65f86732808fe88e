"""Writes a run's masks for an expert to correct, and previews masks from the configured sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import MaskBankEntry
from defectory.artifacts.tiles import spread
from defectory.drawing import contact_sheet, draw_outlines
from defectory.masks.expert import write_review
from defectory.masks.sources import MaskSources
from defectory.rle import decode
from defectory.runs.stage import Run
from defectory.stages.parts.mask_supply import bank_from_train, expert_masks, trained_mask_model

Mask = NDArray[np.bool_]
SHEET_COLUMNS = 10
MAX_CELLS = 120
MASK_COLOUR = (255, 60, 40)


def review_masks(run: Run, out: Path) -> int:
    """Write the bank's masks and a sheet of their tiles for an expert, and return the number of masks."""
    inputs = run.store()
    bank, tileset = bank_from_train(inputs, run.config), inputs.tiles.tileset
    tiles = {tile.id: tile for tile in tileset.tiles}
    names = {category.id: category.name for category in tileset.categories}

    def cell(entry: MaskBankEntry) -> NDArray[np.uint8]:
        image = inputs.tiles.image(tiles[entry.tile_id])
        return draw_outlines(image, [(MASK_COLOUR, decode(entry.mask.rle))])

    shown = spread(bank.entries, MAX_CELLS)
    sheet = contact_sheet(
        [cell(e) for e in shown],
        columns=SHEET_COLUMNS,
        labels=[f"{names[e.category_id]} {e.id}" for e in shown],
        cell_px=160,
    )
    return write_review(bank, tileset.categories, sheet, out)


def preview_masks(run: Run, *, per_class: int, seed: int) -> tuple[NDArray[np.uint8], dict[str, dict[str, int]]]:
    """Draw masks of every class from the configured sources.

    Returns:
        A sheet of the masks, RGB uint8 [H,W,3], and the number of masks per class and source.
    """
    inputs = run.store()
    bank = bank_from_train(inputs, run.config)
    supplied, bank = expert_masks(inputs, run.config, bank)
    tileset = inputs.tiles.tileset
    names = {category.id: category.name for category in tileset.categories}
    config = run.config.masks.model_copy(update={"keep_place": False})
    sources = MaskSources(
        bank, supplied, config=config, names=names, diffusion=trained_mask_model(inputs, run.config, bank)
    )
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
    """Place a mask in the middle of a tile, RGB uint8 [side,side,3]."""
    canvas = np.zeros((side, side, 3), np.uint8)
    mask = mask[:side, :side]
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = 255
    return canvas
