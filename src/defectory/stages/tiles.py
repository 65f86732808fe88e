"""Stages tiles and test-tiles: cut images into squares, test images into a folder of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from defectory.artifacts.tiles import Subset, TileSet, Tiling
from defectory.config.project import ProjectConfig
from defectory.dataset.tiles import choose_tiling, cut_tiles
from defectory.events import Progress, Work, relayed
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore

VERSION = 4
"""Version of both stages, which cut alike."""


def _key(config: ProjectConfig) -> Mapping[str, object]:
    return {"tiling": config.tiling.model_dump(mode="json"), "seed": config.seed, "base": config.base}


class Tiles(Stage):
    """Chooses the tiling and cuts train, pool and val."""

    VERSION = VERSION
    name, folder = "tiles", layout.TILES
    is_preparation = reads_base = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images and split."""
        return ("import", "split")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the tiling section, the seed and the base's tile size."""
        return _key(config)

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Cut tiles around the defects of train and val, and over the pool."""
        tiling = choose_tiling(inputs.data.dataset, inputs.split, config.tiling, base_tile_px(config.base))
        tileset = yield from _cut(inputs, config, tiling, subsets=("train", "pool", "val"), out=out)
        counts = Counter((tile.subset, tile.is_defect_free) for tile in tileset.tiles)
        found = f"train {counts['train', False]} with defects, pool {len(tileset.of('pool'))}"
        return f"{tiling.mode} mode, {tiling.reason}; {found}"


class TestTiles(Stage):
    """Cuts the tiles of test, which training never reads."""

    VERSION = VERSION
    name, folder = "test-tiles", layout.TEST_TILES
    is_preparation = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images, split, and the tiling of the other tiles."""
        return ("import", "split", "tiles")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the tiling section, the seed and the base's tile size."""
        return _key(config)

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Cut test images like the others."""
        tileset = yield from _cut(inputs, config, inputs.tiles.tileset.tiling, subsets=("test",), out=out)
        return f"{len(tileset.tiles)} test tiles"


def base_tile_px(base: str) -> int:
    """Return the side of a base's native tiles in pixels, without loading the base."""
    from defectory.engine.backbones.known import resolve_base
    from defectory.engine.backbones.verify import verify_layout

    return verify_layout(resolve_base(base)).tile_px


def _cut(
    inputs: RunStore, config: ProjectConfig, tiling: Tiling, *, subsets: Sequence[Subset], out: Path
) -> Work[TileSet]:
    cutting = cut_tiles(
        inputs.data.folder,
        inputs.data.dataset,
        inputs.split,
        tiling,
        subsets=subsets,
        out=out,
        config=config.tiling,
        seed=config.seed,
    )
    return (yield from relayed(cutting, lambda e: [Progress(done=e.done, total=e.total, note="images cut")]))
