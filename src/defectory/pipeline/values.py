"""Reads stage outcomes back as values and turns them into what the rooms take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import MANIFEST, Dataset
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet
from defectory.drivers.extract import extract_driver
from defectory.errors import ConfigError
from defectory.pipeline.stage import Project
from defectory.rle import decode

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
T = TypeVar("T")


def dataset_of(project: Project) -> Dataset:
    """Read the data set."""
    return Dataset.load(project.path("data", MANIFEST))


def split_of(project: Project) -> Split:
    """Read the split."""
    return Split.load(project.path("split", "split.json"))


def tileset_of(project: Project, name: str = "tiles") -> TileSet:
    """Read a tile set: `tiles` (train, pool, val) or `test_tiles`."""
    return TileSet.load(project.path(name, "tileset.json"))


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Give at most `limit` items, evenly over all of them; neighbours in a tile set come from one image."""
    if len(items) <= limit:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, limit).round()]


def masks_of(instances: Sequence[Instance]) -> tuple[tuple[int, Mask], ...]:
    """Decode instances to (category id, mask bool [H,W])."""
    return tuple((i.category_id, decode(i.rle)) for i in instances)


def driver_maker(project: Project, num_classes: int) -> Callable[..., Image]:
    """Give the function that extracts drivers of annotated tiles from image, instances, valid size and, where not the instances, `blind`."""
    config = project.config.drivers

    def make(image: Image, instances: Sequence[tuple[int, Mask]], valid_hw: tuple[int, int], blind: Sequence[Mask] | None = None) -> Image:
        return extract_driver(image, instances, num_classes=num_classes, config=config, blind=blind, valid_hw=valid_hw)

    return make


def users_folder(project: Project, name: str | None, *, setting: str, fix: str) -> Path | None:
    """Give a folder that a setting names, relative to the project file; None where it names none.

    Raises:
        ConfigError: there is no such folder; `fix` says what to give.
    """
    if name is None:
        return None
    folder = project.source_folder / Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{setting} {folder}", "no such folder", fix)
    return folder


def source_listing(path: Path) -> list[tuple[str, int, int]]:
    """Give name, size and time of every file a source may read, so that a changed source is noticed."""
    root = path if path.is_dir() else path.parent
    return sorted((p.relative_to(root).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file())
