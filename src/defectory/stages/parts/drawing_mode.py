"""How the drafts of a run are drawn, with `synthesis.mode = "auto"` decided."""

from __future__ import annotations

from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet, Tiling
from defectory.config.project import ProjectConfig
from defectory.masks.bank import build_bank, whole_masks
from defectory.runs.store import RunStore
from defectory.synthesis.config import SynthesisConfig

SQUARE_EXTRA_PX = 4
"""Distance from what a defect changes to the side of its square, tile pixels."""
MIN_WHOLE_SHARE = 0.5
"""Share of the defects of train that must fit whole into a square for `auto` to insert."""


def synthesis_of(inputs: RunStore, config: ProjectConfig) -> SynthesisConfig:
    """Return the synthesis section with the mode that the run's tiles and split decide."""
    return resolved_synthesis(config, inputs.tiles.tileset, inputs.split)


def resolved_synthesis(config: ProjectConfig, tileset: TileSet, split: Split) -> SynthesisConfig:
    """Return the synthesis section with the mode that tiles and split decide.

    `auto` inserts if images are cut into tiles, whole images are free of defects, and most defects fit whole into a
    square.
    """
    synthesis = config.synthesis
    if synthesis.mode != "auto":
        return synthesis
    inserts = tileset.tiling.mode == "tile" and has_free_images(split) and _mostly_whole(config, tileset, split)
    return synthesis.model_copy(update={"mode": "insert" if inserts else "full"})


def _mostly_whole(config: ProjectConfig, tileset: TileSet, split: Split) -> bool:
    bank = build_bank(tileset, split, min_area_px=config.masks.min_area_px)
    fit = whole_masks(bank, most_px=longest_whole_px(config.synthesis, tileset.tiling))
    return len(fit.entries) >= MIN_WHOLE_SHARE * len(bank.entries)


def has_free_images(split: Split) -> bool:
    """Return whether the pool consists of whole images, not of defect-free parts of train images."""
    return split.pool_source != "train_crops"


def uses_squares(synthesis: SynthesisConfig, tiling: Tiling) -> bool:
    """Return whether drafts are squares anywhere on larger images, each around whole masks."""
    return synthesis.mode == "insert" and tiling.mode == "tile"


def delivers_frames(synthesis: SynthesisConfig, split: Split) -> bool:
    """Return whether the delivered images are whole images with defects inserted."""
    return synthesis.mode == "insert" and has_free_images(split)


def square_margin_px(synthesis: SynthesisConfig) -> int:
    """Return the distance of a mask to the sides of its square, tile pixels."""
    return synthesis.insert_margin_px + SQUARE_EXTRA_PX


def longest_whole_px(synthesis: SynthesisConfig, tiling: Tiling) -> int:
    """Return the longest side of a mask that fits whole into a square with its margin, tile pixels."""
    return tiling.tile_px - 2 * square_margin_px(synthesis)
